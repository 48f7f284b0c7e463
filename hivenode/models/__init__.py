"""Knowing models: which exist and what they cost."""
