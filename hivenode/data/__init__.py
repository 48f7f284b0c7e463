"""Feeding models: sources and how they are cut."""
