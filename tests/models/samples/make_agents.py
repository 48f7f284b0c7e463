"""Makes the samples in `agents/`: agents, Q-tables and detectors, each saved by its own library's own call.

Writes `agents.json` beside them: what is expected of each file, sizes by the library's own word. Needs
stable-baselines3, gymnasium, ultralytics and torch:

    python tests/models/samples/make_agents.py [OUT]
"""

from __future__ import annotations

import json
import pickle
import sys
import zipfile
from pathlib import Path

import joblib
import numpy as np
import torch

OUT = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "agents"
EXPECTED: dict[str, dict[str, object]] = {}


def expect(file: str, form: str, framework: str | None, task: str, architecture: str, model: str, size: int) -> Path:
    """Note what a file is; returns where to save it."""
    EXPECTED[file] = {
        "format": form, "framework": framework, "family": "reinforcement_learning", "task": task,
        "architecture": architecture, "model": model, "parameters": size, "safe": True,
    }  # fmt: skip
    return OUT / file


def stable_baselines() -> None:
    from stable_baselines3 import A2C, DDPG, DQN, PPO, SAC, TD3

    for kind, environment, task in (
        (PPO, "CartPole-v1", "policy_gradient"),
        (A2C, "CartPole-v1", "actor_critic"),
        (DQN, "CartPole-v1", "q_learning"),
        (SAC, "Pendulum-v1", "actor_critic"),
        (TD3, "Pendulum-v1", "actor_critic"),
        (DDPG, "Pendulum-v1", "actor_critic"),
    ):
        more = {"n_steps": 8} if kind in (PPO, A2C) else {"buffer_size": 10}
        if kind is PPO:
            more["batch_size"] = 8
        agent = kind("MlpPolicy", environment, policy_kwargs={"net_arch": [4]}, device="cpu", seed=0, **more)
        learnt = [part for name, part in agent.policy.named_parameters() if "_target." not in name]
        name = kind.__name__
        agent.save(
            expect(f"sb3_{name.lower()}.zip", "stable_baselines3", "stable-baselines3", task, name.lower(), name,
                   sum(part.numel() for part in learnt))
        )  # fmt: skip


def tables() -> None:
    rng = np.random.default_rng(0)
    table = rng.normal(size=(48, 4))
    made = ("q_learning", "q_table", "Q-table")
    np.save(expect("q_table.npy", "npy", "numpy", *made, 192), table)
    np.savez(expect("q_table.npz", "npz", "numpy", *made, 192), q_table=table, visits=np.zeros((48, 4), np.int64))
    np.savez_compressed(expect("q_table_compressed.npz", "npz", "numpy", *made, 192), Q=table.reshape(6, 8, 4))
    pickle.dump(table, expect("q_table.pkl", "pickle", "numpy", *made, 192).open("wb"))
    joblib.dump(table, expect("q_table.joblib", "joblib", "numpy", *made, 192))
    for name, value, size in (
        ("q_dict_arrays.pkl", {(row, 1): table[row] for row in range(8)}, 32),
        ("q_dict_lists.pkl", {row: table[row].tolist() for row in range(8)}, 32),
        ("q_dict_dicts.pkl", {str(row): {"left": 0.5, "right": float(row)} for row in range(8)}, 16),
        ("q_pairs.pkl", {(row, action): 0.5 for row in range(8) for action in range(2)}, 16),
        ("q_named.pkl", {"q_table": {row: [0.0, 1.0] for row in range(8)}, "epsilon": 0.1}, 16),
    ):
        pickle.dump(value, expect(name, "pickle", None, *made, size).open("wb"))


def repacked(path: Path) -> None:
    """Deflate the entries, most of them zeros, so that the file is small; torch reads it as before."""
    with zipfile.ZipFile(path) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries:
            archive.writestr(zipfile.ZipInfo(name), data, zipfile.ZIP_DEFLATED, 9)
    torch.load(path, weights_only=False)


def detectors() -> None:
    """The blocks of the published models, fewer of them, with weights of zero."""
    from ultralytics.nn.tasks import ClassificationModel, DetectionModel

    backbone = [[-1, 1, "Conv", [64, 3, 2]], [-1, 1, "Conv", [128, 3, 2]]]
    for file, kind, block, scales, head, task, model in (
        ("yolov8n_short.pt", DetectionModel, "C2f", [0.33, 0.25, 1024], [[[3], 1, "Detect", ["nc"]]],
         "object_detection", "yolov8n"),
        ("yolo11s_cls_short.pt", ClassificationModel, "C3k2", [0.5, 0.5, 1024], [[-1, 1, "Classify", ["nc"]]],
         "image_classification", "yolo11s-cls"),
    ):  # fmt: skip
        layout = {"nc": 2, "scale": model[6], "scales": {model[6]: scales}, "head": head}
        layout["backbone"] = [*backbone, [-1, 3, block, [128, True]], [-1, 1, "SPPF", [128, 5]]]
        network = kind(layout, ch=3, nc=2, verbose=False).half()
        for part in network.parameters():
            part.data.zero_()
        size = sum(part.numel() for part in network.parameters())
        path = expect(file, "ultralytics_pt", "ultralytics", task, "cnn", model, size)
        EXPECTED[file]["family"] = "computer_vision"
        saved = {"epoch": -1, "best_fitness": None, "model": network, "ema": None, "optimizer": None, "train_args": {}}
        torch.save(saved | {"date": "2026-01-01", "version": "8.4"}, path)
        repacked(path)


if __name__ == "__main__":
    OUT.mkdir(parents=True, exist_ok=True)
    for make in (stable_baselines, tables, detectors):
        make()
    OUT.with_suffix(".json").write_text(json.dumps(dict(sorted(EXPECTED.items())), indent=1) + "\n")
