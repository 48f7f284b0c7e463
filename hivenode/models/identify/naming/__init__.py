"""Tables and rules that turn names and shapes found in a file into family, task, architecture and model."""
