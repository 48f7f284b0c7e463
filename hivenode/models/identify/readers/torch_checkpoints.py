"""What all of torch's containers share: from an interpreted pickle to the report. Not a reader itself."""

from __future__ import annotations

import re
from collections.abc import Callable

from hivenode.models.identify.formats.pickles import Value, label, mapping
from hivenode.models.identify.formats.torch_pickles import (
    Found,
    Network,
    View,
    is_module,
    is_tensor,
    module_tensors,
    tensors_in,
    view,
)
from hivenode.models.identify.naming.buffers import is_buffer
from hivenode.models.identify.report import Confidence, Report, Tensor, count

WEIGHTS = (
    "model_state_dict", "state_dict", "model", "model_state", "net", "network", "module", "params", "weights",
    "policy_state_dict", "policy", "ema_state_dict", "model_ema", "ema", "params_ema", "state_dict_ema", "ema_model",
    "g_ema", "shadow_params",
)  # fmt: skip
"""Where checkpoints keep the model, in the order of choice; averaged weights (EMA) only if there are no others."""
BESIDE = re.compile(
    r"optim|sched|scaler|ema|average|momentum|adam|rng|amp|loss|metric|callback|history|sampler|grad", re.IGNORECASE
)
NETWORKS = re.compile(
    r"^(net|model|gen|disc|netG|netD|G|D|actor|critic|encoder|decoder|policy|value|q_?net|target|qf|unet|vae)"
)
Place = Callable[[View], tuple[int | None, str]]
"""Where a view's storage begins: offset in the file and the file's name."""


def describe(report: Report, value: Value, place: Place) -> None:
    """Fill in a report from the value of a torch pickle.

    Args:
        place: of each storage; raises what is wrong with one.
    """
    from hivenode.models.identify.naming.state_dicts import recognise

    report.know(Confidence.read, "its format is torch's own", framework="pytorch")
    found, root, network = _choose(value)
    evidence = f"the tensors under {root}" if root else "its tensors"
    report.hold(listing(found, place), evidence)
    if network is not None:
        name_network(report, network)
        count_frozen(report, found)
    top = mapping(value) or {}
    arch = top.get("arch")
    if isinstance(arch, str) and len(arch) < 100:
        report.know(Confidence.read, "its entry arch", model=arch)
    if "pytorch-lightning_version" in top:
        report.hyperparameters["pytorch_lightning_version"] = label(top["pytorch-lightning_version"])[:40]
    recognise(report, report.listing)


def count_frozen(report: Report, found: list[Found]) -> None:
    """Parameters of modules: those that do not require a gradient are parameters too, if not trainable ones."""
    own = [
        tensor
        for part, tensor in zip(found, report.listing, strict=True)
        if part.buffer is False and tensor.shared_with is None
    ]
    every = sum(count(tensor.shape) for tensor in own)
    report.know(Confidence.read, "the parameters of its modules, frozen ones too", parameters=every)
    if any(tensor.trainable is True for tensor in own):
        learning = sum(count(tensor.shape) for tensor in own if tensor.trainable)
        report.know(Confidence.read, "requires_grad", trainable_parameters=learning)


def _choose(value: Value) -> tuple[list[Found], str, Network | None]:
    """The model's tensors, the key they are under ("" for the whole), and its modules if it is a pickled module."""
    if is_module(value):
        found, network = module_tensors(value)
        return found, "", network
    single = view(value)
    if single is not None:
        return [Found("tensor", single, None)], "", None
    top = mapping(value)
    if top is None:
        return list(tensors_in(value, skip=_beside)), "", None
    direct = sum(map(is_tensor, top.values()))
    if direct == 0 or direct * 2 < len(top):
        for key in WEIGHTS:
            part = top.get(key)
            if is_module(part):
                found, network = module_tensors(part)
                return found, str(key), network
            if mapping(part) is not None or isinstance(part, list):
                found = list(tensors_in(part))
                if found:
                    inner = mapping(part) or {}
                    deeper = next((name for name in WEIGHTS if mapping(inner.get(name))), None)
                    if deeper and not any(map(is_tensor, inner.values())):
                        return list(tensors_in(inner[deeper])), f"{key}.{deeper}", None
                    return found, key, None
    return list(tensors_in(value, skip=_beside if not direct else lambda _: False)), "", None


def _beside(name: str) -> bool:
    """Whether an entry of a checkpoint is kept beside the model: optimizer state, averages, random state."""
    return "." not in name and BESIDE.search(name) is not None and NETWORKS.match(name) is None


def listing(found: list[Found], place: Place) -> list[Tensor]:
    """Tensors with their places; those that share bytes and shape with an earlier one are marked."""
    first: dict[tuple[object, ...], str] = {}
    made = []
    for part in found:
        tensor = part.view
        trainable = tensor.trainable
        if part.buffer or (part.buffer is None and is_buffer(part.name, tensor.shape)):
            trainable = False
        elif part.buffer is None:
            trainable = None  # state dicts are detached: their requires_grad says nothing
        shared = None
        start: int | None = None
        packed: tuple[str, int] | None = None
        file = ""
        if tensor.storage is not None:
            shared_key = (tensor.storage.key, tensor.offset, tensor.shape, tensor.stride)
            shared = first.setdefault(shared_key, part.name)
            begin, file = place(tensor)
            within = tensor.offset * tensor.itemsize
            start = None if begin is None else begin + within
            packed = (tensor.storage.key, within) if begin is None else None
        made.append(
            Tensor(
                part.name,
                tensor.dtype,
                tensor.shape,
                file,
                start,
                count(tensor.shape) * tensor.itemsize,
                None if tensor.stride == rows(tensor.shape) else tensor.stride,
                trainable,
                None if shared == part.name else shared,
                packed,
            )
        )
    return made


def rows(shape: tuple[int, ...]) -> tuple[int, ...]:
    """The stride of contiguous rows, in elements."""
    steps = []
    step = 1
    for size in reversed(shape):
        steps.append(step)
        step *= max(1, size)
    return tuple(reversed(steps))


def name_network(report: Report, network: Network) -> None:
    """Model, architecture and layers by the classes of a pickled module."""
    from hivenode.models.identify.naming.architectures import by_layers, know_class

    whole = network.classes.get("", "")
    short = whole.rpartition(".")[2]
    if short:
        report.know(Confidence.read, f"the class {whole}", model=short)
        know_class(report, short)
    if report.architecture is None:
        layers = by_layers(name.rpartition(".")[2] for name in network.classes.values())
        report.know(Confidence.inferred, "the classes of its layers", architecture=layers)
