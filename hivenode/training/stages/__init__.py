"""A model cut into stages, one a member: consecutive parts of its graph, and what flows between them."""
