"""stable-baselines3: a zip archive of settings in JSON and of torch checkpoints.

https://stable-baselines3.readthedocs.io/en/master/guide/save_format.html. Settings that JSON can't say are pickles in
base64 under `:serialized:`, which the library's loader runs.
"""

from __future__ import annotations

import binascii
from typing import Any

from hivenode.errors import Corrupted
from hivenode.models.identify.formats import jsons
from hivenode.models.identify.formats.archives import STORED, Archive
from hivenode.models.identify.formats.nested import Nested
from hivenode.models.identify.formats.python_pickles import content
from hivenode.models.identify.naming.agent_pickles import ALLOWED, BARE
from hivenode.models.identify.report import FREE, Confidence, Port, Report, Tensor
from hivenode.models.identify.source import Held, Source

DATA, POLICY = "data", "policy.pth"
OWN = frozenset({DATA, "_stable_baselines3_version", "system_info.txt", "vec_normalize.pkl"})
LONGEST_SETTING = 24 << 20
AGENT = "reinforcement_learning"
ALGORITHMS: tuple[tuple[str, tuple[str, ...], str, str], ...] = (
    ("PPO", ("clip_range", "n_epochs"), "policy_gradient", "ppo"),
    ("DQN", ("exploration_fraction",), "q_learning", "dqn"),
    ("SAC", ("target_entropy",), "actor_critic", "sac"),
    ("TD3", ("policy_delay",), "actor_critic", "td3"),
    ("A2C", ("n_steps", "vf_coef"), "actor_critic", "a2c"),
)
"""Name, settings only it has (the first that fits, in this order), task, architecture."""


def detects(head: bytes, source: Source) -> bool:
    archive = Archive.sound(head, source)
    return archive is not None and DATA in archive and (POLICY in archive or "_stable_baselines3_version" in archive)


def read(source: Source) -> Report:
    archive = Archive.of(source)
    report = Report(safe=True)
    report.know(Confidence.read, f"{DATA} and {POLICY}", format="stable_baselines3", framework="stable-baselines3")
    settings = jsons.table(archive.read(DATA), f"{DATA} in {source.name}")
    _judge(report, settings, source.name)
    report.know(Confidence.inferred, "what the archive is for", family=AGENT)
    _algorithm(report, settings)
    _spaces(report, settings)
    if "_stable_baselines3_version" in archive:
        version = archive.read("_stable_baselines3_version", limit=1000)
        report.hyperparameters["stable_baselines3_version"] = version.decode("utf-8", "replace").strip()[:40]
    for name in archive.entries:
        if name.endswith(".pth"):
            _checkpoint(report, archive, name)
        elif name not in OWN:
            report.find(name, source.name, "stable-baselines3 puts no such file into an agent")
        elif name.endswith(".pkl"):
            content(report, Held(archive.read(name)), name, ALLOWED, BARE, where=name)
    return report


def _judge(report: Report, settings: dict[str, Any], name: str) -> None:
    """Interpret every pickle in the settings, however deep it lies."""
    waiting: list[tuple[str, Any]] = list(settings.items())
    while waiting:
        place, value = waiting.pop()
        if isinstance(value, list):
            waiting.extend((f"{place}[{at}]"[:200], part) for at, part in enumerate(value))
        if not isinstance(value, dict):
            continue
        waiting.extend((f"{place}.{key}"[:200], part) for key, part in value.items())
        if ":serialized:" not in value:
            continue
        packed = value[":serialized:"]
        try:
            if not isinstance(packed, str) or len(packed) > LONGEST_SETTING:
                raise ValueError
            raw = binascii.a2b_base64(packed.encode("ascii"))
        except ValueError:
            raise Corrupted(
                f"The setting {place} in {name} is no base64 of a sensible length.", fix="Save the agent again."
            ) from None
        where = f"{DATA}: {place}"
        content(report, Held(raw), f"{where} in {name}", ALLOWED, BARE, where=where)


def _algorithm(report: Report, settings: dict[str, Any]) -> None:
    for name, marks, task, architecture in ALGORITHMS:
        if all(mark in settings for mark in marks):
            if name == "TD3" and settings["policy_delay"] == 1:
                name, architecture = (
                    "DDPG",
                    "ddpg",
                )  # which stable-baselines3 makes as a TD3 with one critic and no delay
            report.know(
                Confidence.inferred,
                f"the settings {', '.join(marks)}",
                task=task,
                architecture=architecture,
                model=name,
            )
            break
    policy = jsons.text(jsons.inner(settings, "policy_class"), "__module__")
    if policy is not None:
        report.hyperparameters["policy_module"] = policy[:100]
    for key in (
        "gamma",
        "learning_rate",
        "n_steps",
        "batch_size",
        "n_epochs",
        "buffer_size",
        "num_timesteps",
        "n_envs",
    ):
        value = settings.get(key)
        if isinstance(value, int | float) and not isinstance(value, bool):
            report.hyperparameters[key] = value


def _spaces(report: Report, settings: dict[str, Any]) -> None:
    """Observations and actions, as the settings spell them out for people."""
    for key, ports, label in (
        ("observation_space", "inputs", "observation"), ("action_space", "outputs", "action"),
    ):  # fmt: skip
        space = jsons.inner(settings, key)
        shape, kind = space.get("_shape"), jsons.text(space, ":type:") or ""
        if isinstance(shape, list) and all(isinstance(size, int) and 0 <= size < 1 << 31 for size in shape):
            port = Port(label, jsons.text(space, "dtype"), (FREE, *shape))
            report.know(Confidence.read, f"{key} {kind[:80]}", **{ports: [port]})
        count = jsons.text(space, "n")
        if count is not None and count.isdecimal() and len(count) < 10:
            report.hyperparameters["actions" if label == "action" else "observations"] = int(count)


def _checkpoint(report: Report, archive: Archive, name: str) -> None:
    """Judge one of the checkpoints; the policy's tensors are the agent's."""
    from hivenode.models.identify.readers import torch_zip

    entry = archive.entries[name]
    source = archive.source
    if entry.method == STORED:
        inner = Nested(source, archive.part(name), f"{name} in {source.name}")
    else:
        inner = Nested(source, archive.read(name), f"{name} in {source.name}")
    if not torch_zip.detects(inner.head(64), inner):
        report.find(name, source.name, "it is no checkpoint of torch in a zip archive; its loader would unpickle it")
        return
    held = torch_zip.read(inner)
    report.adopt(held, name)
    if name == POLICY:
        start = archive.start(name) if entry.method == STORED else None
        report.hold(
            [_placed(tensor, start) for tensor in held.listing], f"the tensors of {POLICY}, target copies left out"
        )
        report.know(Confidence.read, POLICY, layers=held.layers)


def _placed(tensor: Tensor, start: int | None) -> Tensor:
    """A tensor of the policy with its place in the whole file; target networks are copies that are not learnt."""
    target = any(part.endswith("_target") for part in tensor.name.split("."))
    return Tensor(
        tensor.name, tensor.dtype, tensor.shape, "",
        None if start is None or tensor.offset is None else start + tensor.offset,
        tensor.nbytes, tensor.stride, False if target else tensor.trainable, tensor.shared_with,
    )  # fmt: skip
