"""How the members of an attempt share its work."""
