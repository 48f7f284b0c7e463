"""What the daemon has in memory before it does anything."""

from __future__ import annotations

import subprocess
import sys


def test_the_daemon_begins_without_arrays_and_frameworks() -> None:
    heavy = ("numpy", "torch", "tensorflow", "sklearn", "pyarrow", "PIL", "onnx", "safetensors")
    code = f"import sys, hivenode.daemon; print([name for name in {heavy} if name in sys.modules])"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
