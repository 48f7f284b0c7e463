"""The person's hands: a client of the admin endpoint and of nothing else."""
