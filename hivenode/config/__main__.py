"""Prints the configuration file."""

from hivenode.config.rendering import render

print(render(), end="")
