"""One reader per format. A module here offers

- `detects(head, source) -> bool`: is it this format, by the first 4 KiB (if needed, the tail)? Cheap, never raises.
- `read(source) -> Report`: everything the headers tell. Raises HiveError for what is damaged or refused.

and for directories, `detects_directory(path, names) -> bool` and `read_directory(path) -> Report`.
"""
