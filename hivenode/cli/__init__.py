"""The command line: a client of a node's admin endpoint, and what starts the daemon.

Modules import only typer and small things at the top; the rest is imported by the verb that needs it, so that
`hivenode --help` is quick.
"""
