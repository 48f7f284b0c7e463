"""The local endpoint: REST on loopback, event stream, metrics."""
