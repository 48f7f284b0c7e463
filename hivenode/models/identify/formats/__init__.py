"""Bounded primitives that formats are built from: each reads only what is asked for, and bounds what it keeps."""
