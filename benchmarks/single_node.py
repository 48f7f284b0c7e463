"""A training on one node through hivenode, beside a plain PyTorch script that does the same; and how soon a job starts.

    python benchmarks/single_node.py                     # a training of about a minute, and ten starts
    python benchmarks/single_node.py --epochs 200 --starts 3 --json

The plain script knows nothing of hivenode: the same network, data, batches and optimizer, one thread, its accuracy on
the held-out part after each epoch. It counts from its first step, with everything imported and loaded. Ours counts from
the submission of the job to a real daemon until it is finished: planning, a worker, checkpoints every 50 steps,
progress and the model's file and entry in the catalogue included. A start is from the submission to the first step that
the daemon tells of, with a warm daemon: it has had a job before.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import aiohttp

from tests.cluster.machines import Machine

BATCH, RATE, MOMENTUM, HELD_OUT = 64, 0.02, 0.9, 359

PLAIN = f"""
import sys, time, json
import torch
from sklearn.datasets import load_digits
from torch import nn
torch.manual_seed(0)
torch.set_num_threads(1)
digits = load_digits()
inputs = torch.tensor(digits.images / 16, dtype=torch.float32).unsqueeze(1)
labels = torch.tensor(digits.target)
order = torch.randperm(len(inputs))
test, train = order[:{HELD_OUT}], order[{HELD_OUT}:]
model = nn.Sequential(
    nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
    nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))
optimizer = torch.optim.SGD(model.parameters(), lr={RATE}, momentum={MOMENTUM})
began = time.perf_counter()
for epoch in range(int(sys.argv[1])):
    model.train()
    for batch in train[torch.randperm(len(train))].split({BATCH}):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(inputs[batch]), labels[batch])
        loss.backward()
        optimizer.step()
        assert loss.item() == loss.item()
    model.eval()
    with torch.no_grad():
        right = (model(inputs[test]).argmax(1) == labels[test]).float().mean().item()
print(json.dumps([time.perf_counter() - began, right]))
"""


def plain(epochs: int) -> tuple[float, float]:
    """Seconds and accuracy of the script."""
    told = subprocess.run([sys.executable, "-c", PLAIN, str(epochs)], check=True, capture_output=True, text=True)
    seconds, accuracy = json.loads(told.stdout)
    return seconds, accuracy


def job(epochs: int) -> dict[str, Any]:
    return {
        "name": "single",
        "model": {"source": "zoo:cnn"},
        "training": {"epochs": epochs, "batch_size": BATCH, "learning_rate": RATE, "momentum": MOMENTUM},
        "placement": {"strategy": "single_node"},
    }


async def submitted(machine: Machine, epochs: int) -> tuple[float, float, float]:
    """From the submission: seconds to the first step told and to the end; and the accuracy."""
    headers = {"Authorization": f"Bearer {(machine.home / 'admin.token').read_text().strip()}"}
    url = json.loads((machine.home / "run" / "admin.json").read_text())["url"]
    first = 0.0
    async with (
        aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None)) as session,
        session.get(f"{url}/v1/events") as stream,
    ):
        began = time.perf_counter()
        async with session.post(f"{url}/v1/jobs", json={"spec": job(epochs)}) as response:
            name = (await response.json())["summary"]["job"]
        while True:
            line = await stream.content.readline()
            if not line.startswith(b"data:"):
                continue
            notice = json.loads(line[5:])
            data = notice["data"]
            if data.get("job") != name:
                continue
            if not first and notice["kind"] == "progress" and data["step"] >= 1:
                first = time.perf_counter() - began
            if notice["kind"] == "job" and data["state"] in ("finished", "failed"):
                assert data["state"] == "finished", data
                return first, time.perf_counter() - began, data["accuracy"]


async def measure(epochs: int, starts: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory(prefix="hivenode-bench-") as folder:
        machine = Machine(Path(folder), "lone")
        await machine.start()
        try:
            await submitted(machine, 1)  # which also waits until its worker server is warm
            seconds, accuracy = await asyncio.to_thread(plain, epochs)
            _, taken, found = await submitted(machine, epochs)
            firsts = [(await submitted(machine, 1))[0] for _ in range(starts)]
        finally:
            await machine.stop()
    return {
        "plain_seconds": seconds,
        "plain_accuracy": accuracy,
        "hivenode_seconds": taken,
        "hivenode_accuracy": found,
        "ratio": taken / seconds,
        "start_seconds": firsts,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--epochs", type=int, default=2000)
    parser.add_argument("--starts", type=int, default=10)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.epochs, options.starts))
    if options.json:
        print(json.dumps(found))
        return
    print(f"plain script  {found['plain_seconds']:.2f} s, accuracy {found['plain_accuracy']:.3f}")
    print(f"hivenode      {found['hivenode_seconds']:.2f} s, accuracy {found['hivenode_accuracy']:.3f}")
    print(f"ratio         {found['ratio']:.3f}")
    starts = found["start_seconds"]
    if starts:
        middle = statistics.median(starts)
        print(f"first step    {middle:.2f} s after submission, median  (from {min(starts):.2f} to {max(starts):.2f})")


if __name__ == "__main__":
    main()
