"""Being a member: failure detection, election, feeds and the views folded from them."""
