"""The worker's composition root: runs one assignment, knows the daemon only through net.local."""
