"""Networks of which there are tensors and no graph: ResNets by their names, dense stacks and recurrent ones by their
shapes, everything else by a wide rule."""

from __future__ import annotations

import re
from collections.abc import Sequence

from hivenode.models.analyze.costs import Costs
from hivenode.models.analyze.quantities import ruled
from hivenode.models.analyze.tape import Step, Tape
from hivenode.models.identify.report import Report, Tensor, count

PICTURE = 224
_STAGE = re.compile(r"(?:.*\.)?layer([1-4])\.(\d+)\.(conv\d|downsample\.0|shortcut\.0)\.weight$")
_STEM = re.compile(r"(?:.*\.)?conv1\.weight$")


def resnet(report: Report, batch: int) -> Tape | None:
    """A ResNet as torchvision names it, at 224 x 224: a stem of stride 4, then stages that halve (He et al., 2015)."""
    if not (report.model or "").startswith(("resnet", "resnext", "wide_resnet")):
        return None
    steps: list[Step] = []
    before, side = "input", PICTURE
    block_input = before
    for tensor in report.listing:
        if len(tensor.shape) == 4 and "layer" not in tensor.name and _STEM.match(tensor.name):
            side = PICTURE // 2
            if tensor.shape[2] < 7:
                return None  # the small ones for CIFAR have another stem
            before = _conv(steps, tensor, before, batch, side)
            side //= 2
            steps.append(Step((before,), "pool", batch * tensor.shape[0] * side * side))
            before = "pool"
        elif (found := _STAGE.match(tensor.name)) and len(tensor.shape) == 4:
            stage, block, role = int(found.group(1)), int(found.group(2)), found.group(3)
            out = PICTURE // 4 >> (stage - 1)
            if role == "conv1":
                block_input = before
            # In a bottleneck (conv3 there) it is the second convolution that halves, else the first.
            early = stage > 1 and block == 0 and role == "conv1" and _is_bottleneck(report, tensor.name)
            skip = role.startswith(("downsample", "shortcut"))
            made = _conv(steps, tensor, block_input if skip else before, batch, 2 * out if early else out)
            if not skip:
                before = made
        elif len(tensor.shape) == 2:
            steps.append(Step((before,), tensor.name, batch * tensor.shape[0], 2.0 * batch * count(tensor.shape)))
            before = tensor.name
    if not steps:
        return None
    return Tape(steps, [("input", batch * 3 * PICTURE * PICTURE)], f"{report.model}, {len(steps)} steps",
                assumed=(f"pictures of {PICTURE} x {PICTURE}",))  # fmt: skip


def _is_bottleneck(report: Report, name: str) -> bool:
    third = name.replace("conv1", "conv3")
    return any(tensor.name == third for tensor in report.listing)


def _conv(steps: list[Step], tensor: Tensor, before: str, batch: int, side: int) -> str:
    """A convolution and its normalization, each with an output to keep; returns the name of the last."""
    elements = batch * tensor.shape[0] * side * side
    steps.append(Step((before,), tensor.name, elements, 2.0 * elements * count(tensor.shape[1:]), copied=True))
    steps.append(Step((tensor.name,), f"{tensor.name} normalized", elements))
    return f"{tensor.name} normalized"


def recurrent(report: Report, batch: int, sequence: int, itemsize: float) -> Costs | None:
    """LSTM, GRU and plain ones: two products a step and direction; gates and states are kept."""
    cells = [t for t in report.listing if re.search(r"weight_[ih]h_l\d", t.name) and len(t.shape) == 2]
    if not cells:
        return None
    others = [t for t in report.listing if len(t.shape) == 2 and t not in cells and "emb" not in t.name.lower()]
    tokens = batch * sequence
    flops = sum(2.0 * tokens * count(t.shape) for t in cells) + sum(2.0 * batch * count(t.shape) for t in others)
    gates = sum(t.shape[0] for t in cells if "weight_hh" in t.name)
    width = max(t.shape[1] for t in cells)
    said = f"{len(cells) // 2} layers and directions, {batch} x {sequence} steps"
    return Costs(
        forward=ruled(flops, f"2 FLOPs a weight and step: {said}", 0.95, 1.3, "FLOP"),
        kept=ruled(tokens * (gates + 3.0 * width) * itemsize, f"gates and states: {said}", 0.5, 2.0),
        passing=ruled(tokens * 4.0 * width * itemsize, f"input and output of a layer, and gates: {said}", 0.5, 2.5),
    )


def dense(report: Report, batch: int, itemsize: float) -> Costs | None:
    """Matrices only: each is one product a sample."""
    matrices = [t for t in report.listing if len(t.shape) == 2 and t.trainable is not False]
    if not matrices or any(len(t.shape) > 2 for t in report.listing) or report.architecture in ("transformer", "rnn"):
        return None
    if any("emb" in t.name.lower() for t in matrices):
        return None
    flops = sum(2.0 * batch * count(t.shape) for t in matrices)
    widths = _chain(matrices)
    said = f"{len(matrices)} matrices, {batch} samples"
    return Costs(
        forward=ruled(flops, f"2 FLOPs a weight and sample: {said}", 0.98, 1.1, "FLOP"),
        kept=ruled(2.0 * batch * sum(widths) * itemsize, f"inputs and outputs of each: {said}", 0.4, 1.5),
        passing=ruled(2.0 * batch * max(widths) * itemsize, f"input and output of the widest: {said}", 0.4, 1.5),
    )


def _chain(matrices: Sequence[Tensor]) -> list[int]:
    """Widths along a stack: every output, and the first input."""
    return [matrices[0].shape[1], *(tensor.shape[0] for tensor in matrices)]


def unknown(report: Report, batch: int, itemsize: float, weight_bytes: float) -> Costs:
    """Weights that nothing more is known of: each used once a sample, or a thousand times (a convolution)."""
    parameters = report.parameters or 0
    shared = report.architecture in ("cnn", "gan", "diffusion") or any(len(t.shape) > 2 for t in report.listing)
    most = 1000.0 if shared else 30.0
    likely = 100.0 if shared else 1.0
    said = "how often each weight is used is not known"
    return Costs(
        forward=ruled(2.0 * likely * parameters * batch, f"2 FLOPs a weight and use; {said}",
                      1 / likely, most / likely, "FLOP") if parameters else None,
        kept=ruled(weight_bytes * batch * 0.3, f"from the size of the weights alone; {said}", 0.03, 10.0),
        passing=ruled(weight_bytes * batch * 0.1, f"from the size of the weights alone; {said}", 0.03, 10.0),
    )  # fmt: skip
