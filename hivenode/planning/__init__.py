"""Choosing how to break a job down, from measurements and experience."""
