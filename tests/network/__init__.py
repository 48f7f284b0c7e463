"""Real daemons in network namespaces of their own, joined by a bridge."""
