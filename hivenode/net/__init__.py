"""The wire: links between nodes, bulk transfer, discovery, and the channel to workers."""
