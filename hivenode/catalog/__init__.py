"""What the hive has made: models, versions, and who keeps their bytes."""
