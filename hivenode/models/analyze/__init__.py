"""What a model takes: memory, FLOPs, time. From its headers alone, without a framework; better with a trace.

`quantities.py` is what is answered, `transformers.py`, `onnx_shapes.py`, `keras_shapes.py` and `state_dicts.py` are the
rules of each kind of model, `tape.py` adds up what graphs compute, `memory.py` adds up what a process takes,
`nodes.py` compares it with machines, `orders.py` says what a worker may trace, and for what it needs no file.
"""

from __future__ import annotations

from hivenode.models.analyze.analysis import analyze, analyze_zoo
from hivenode.models.analyze.nodes import place
from hivenode.models.analyze.orders import order_for, order_for_zoo
from hivenode.models.analyze.quantities import Analysis, Options

__all__ = ["Analysis", "Options", "analyze", "analyze_zoo", "order_for", "order_for_zoo", "place"]
