"""What each codec of the exchange costs and loses on this machine.

    python benchmarks/codecs.py                  # ten million float32
    python benchmarks/codecs.py --floats 1000000 --json

Encodes and decodes standard normal numbers on one thread, median of five, and prints seconds for both together, mean
squared error and megabytes on the wire; half precision twice, by numpy alone and as where PyTorch is loaded. Beside
them, where there is one, the figure of hivemind 1.1.12's codec of the same kind, measured once on the same kind of
machine (2 cores, shared); the ratio is our time to its time.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time

import numpy as np

from hivenode.training.exchange.codecs import CODECS

HIVEMIND = {"fp16": (0.051, 0.0, 20.0), "int8": (0.24, 1.7e-4, 10.0)}
"""Seconds, mean squared error and MB of its fp16 and blockwise 8-bit codecs for ten million numbers."""


def measure(name: str, values: np.ndarray, tries: int) -> dict[str, float]:
    codec = CODECS[name]
    data, back = np.empty(codec.encoded_size(values.size), np.uint8), np.empty_like(values)
    encode, decode = [], []
    for _ in range(tries + 1):  # the first touches fresh memory
        began = time.perf_counter()
        codec.encode(values, data)
        turned = time.perf_counter()
        codec.decode(data, back)
        encode.append(turned - began)
        decode.append(time.perf_counter() - turned)
    error = float(np.mean((values - back).astype(np.float64) ** 2))
    return {
        "encode_seconds": statistics.median(encode[1:]),
        "decode_seconds": statistics.median(decode[1:]),
        "mse": error,
        "megabytes": data.nbytes / 1e6,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--floats", type=int, default=10_000_000)
    parser.add_argument("--tries", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    values = np.random.default_rng(0).standard_normal(options.floats, np.float32)
    results = {name: measure(name, values, options.tries) for name in CODECS}
    import torch

    torch.set_num_threads(1)
    results["fp16, torch"] = measure("fp16", values, options.tries)
    if options.json:
        print(json.dumps(results))
        return
    print(f"{options.floats:,} standard normal float32, one thread")
    print("codec        encode s  decode s       MSE        MB   hivemind s / MSE    time ratio")
    for name, found in results.items():
        both = found["encode_seconds"] + found["decode_seconds"]
        line = f"{name:11} {found['encode_seconds']:9.3f} {found['decode_seconds']:9.3f} {found['mse']:9.1e} "
        line += f"{found['megabytes']:9.2f}"
        if (kind := name.partition(",")[0]) in HIVEMIND and options.floats == 10_000_000:
            seconds, error, _ = HIVEMIND[kind]
            line += f"   {seconds:9.3f} / {error:.1e} {both / seconds:10.2f}"
        print(line)


if __name__ == "__main__":
    main()
