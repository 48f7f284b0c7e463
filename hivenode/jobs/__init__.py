"""From wish to result: the ledger, the coordinator's decisions, the executor's work."""
