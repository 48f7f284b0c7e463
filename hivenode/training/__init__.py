"""Inside a worker: frameworks, strategies, the exchange, checkpoints."""
