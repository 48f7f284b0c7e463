"""Who is who: keys, the hive's authority, grants and invites."""
