"""What a node keeps: the journal of feed records, small durable cells, and content-addressed blobs."""
