"""Frameworks as the training loop sees them."""
