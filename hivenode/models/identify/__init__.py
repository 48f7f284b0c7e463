"""What a file is, from its headers: nothing in it is run, unpickled or imported.

`report.py` is what is answered, `source.py` how bytes are read, `formats/` the bounded primitives (zip, pickle,
protobuf, HDF5, ...), `readers/` one reader per format, chosen by content, `naming/` the tables that turn names and shapes
into family, task and architecture.
"""
