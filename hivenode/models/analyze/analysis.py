"""From a report, options and perhaps a trace to an analysis."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from hivenode.errors import BY_CODE, HiveError
from hivenode.models.analyze import keras_shapes, memory, onnx_shapes, state_dicts, transformers, weights
from hivenode.models.analyze.costs import Costs
from hivenode.models.analyze.orders import dtypes
from hivenode.models.analyze.quantities import (
    OPTIMIZERS,
    Analysis,
    Method,
    Options,
    Quantity,
    check,
    complexity,
    exact,
    ruled,
    traced,
)
from hivenode.models.analyze.tape import Step, Tape
from hivenode.models.identify import Report
from hivenode.models.identify.readers.keras import configuration
from hivenode.models.identify.source import Source
from hivenode.spec.tracing import TraceNumbers

if TYPE_CHECKING:
    from hivenode.spec.job import JobSpec

_UNCOUNTED = frozenset(
    ("tree_based", "ensemble", "clustering", "nearest_neighbors", "svm", "gaussian_process", "naive_bayes", "q_table")
)
"""What computes by comparing and looking up, not with counted weights."""
STEPS = 128
"""Of a recurrent or other model that takes sequences and does not say how long they are."""
_NO_SEQUENCE = ("computer_vision", "tabular", "reinforcement_learning")


def analyze(path: Path, report: Report, options: Options, numbers: TraceNumbers | None = None) -> Analysis:
    """Everything that is known of the model at `path`, of which `report` tells.

    Args:
        numbers: of a trace with the same options, if one was made.

    Raises:
        InvalidInput: impossible options, with the nearest name.
        HiveError: the file cannot be read, as its report says.
    """
    check(options)
    if report.error is not None and not (report.error.code == "not_found" and report.model and report.layers):
        raise BY_CODE.get(report.error.code, HiveError)(report.error.message, fix=report.error.fix)
    found = Analysis(
        path=str(path), model=report.model, framework=report.framework, family=report.family,
        architecture=report.architecture, parameters=report.parameters, options=options,
    )  # fmt: skip
    if not report.listing and numbers is not None:
        found.parameters = numbers.parameters
        found.notes.append("There are no weights: the numbers are those of the configuration.")
    sizes = transformers.sizes_of(report) if report.architecture == "transformer" else None
    guessed = transformers.parameters_of(sizes) if sizes is not None and not report.listing and numbers is None else 0
    if guessed:
        found.notes.append("There are no weights: their number follows from the configuration by rule.")
    if found.parameters or guessed:
        found.complexity = complexity(found.parameters or guessed)
    if report.format == "peft_adapter":
        found.notes.append("This is an adapter alone: the model it belongs to comes on top.")
    if report.safe is False:
        found.notes.append("The file holds what is not known to be harmless: see `hivenode identify`.")
    infer, train = dtypes(report, options)
    sequence = _sequence(found, report, options)
    found.options = msgspec.structs.replace(options, sequence=sequence or None)
    sequence = sequence or 1
    _weights(found, report, options, infer, numbers)
    if guessed:
        found.weights = ruled(guessed * weights.ITEMSIZES[infer], f"sizes of the configuration, as {infer}", 0.7, 1.4)
    if weights.is_quantized(report) and options.train:
        found.notes.append(f"Weights kept as {report.quantization} are not trained; their gradients are not counted.")
        options = msgspec.structs.replace(options, train=False, infer=True)
    if numbers is None and not guessed and (report.parameters is None or report.architecture in _UNCOUNTED):
        _without_tensors(found, report)
        return found
    item = weights.ACTIVATIONS[infer]
    costs = _costs(report, path, options.batch, sequence, item, _cache_itemsize(report, infer))
    if options.infer:
        _inference(found, costs, numbers)
    if options.train:
        step = costs if item == weights.ACTIVATIONS[train] else _costs(
            report, path, options.batch, sequence, weights.ACTIVATIONS[train], 0.0
        )  # fmt: skip
        count, _, which = weights.trainable(report)
        if not report.listing and numbers is not None:
            count, which = numbers.parameters, "parameters of the configuration"
        full = _trained_weights(report, train, numbers)
        if guessed:
            count, which = guessed, "parameters by rule"
            full = ruled(guessed * weights.ITEMSIZES[train], f"as {train}", 0.7, 1.4)
        _training(found, options, step, full, (count, which), train, weights.largest_elements(report), numbers)
    if (
        numbers is not None
        and report.parameters
        and abs(numbers.parameters - report.parameters) > 0.01 * max(numbers.parameters, 1)
    ):
        found.notes.append(
            f"The configuration describes {numbers.parameters:,} parameters, the file holds {report.parameters:,}."
        )
    return found


def analyze_zoo(path: Path, job: JobSpec, options: Options, numbers: TraceNumbers | None = None) -> Analysis:
    """The model of a job; its batch and optimizer are what the options say.

    Raises:
        InvalidInput: impossible options, or a model or data set that does not exist.
    """
    from hivenode.data.sources import information
    from hivenode.models.declared import describe

    check(options)
    data = information(job.data)
    cost = describe(job.model, data)
    infer, train = dtypes(None, options)
    family = "nlp" if data.vocabulary else "computer_vision" if len(data.input_shape) == 3 else "tabular"
    found = Analysis(
        path=str(path), model=job.model.source, framework=job.framework, architecture="neural_network",
        family=family, parameters=cost.parameters, complexity=complexity(cost.parameters), options=options,
    )  # fmt: skip
    if options.sequence is not None:
        found.notes.append("--sequence is ignored: the model takes no sequence.")
    found.weights = exact(cost.parameters * weights.ITEMSIZES[infer], f"{cost.parameters:,} declared, as {infer}")
    steps, before = [], "input"
    for layer in cost.layers:
        elements = options.batch * layer.activation_bytes // 4
        steps.append(Step((before,), layer.name, elements, float(options.batch * layer.flops)))
        before = layer.name
    tape = Tape(steps, [("input", options.batch * data.features)], f"{len(steps)} declared layers")
    if options.infer:
        _inference(found, tape.costs(weights.ACTIVATIONS[infer]), numbers)
    if options.train:
        largest = max(layer.parameters for layer in cost.layers)
        full = exact(cost.parameters * weights.ITEMSIZES[train], f"as {train}")
        trainable = (cost.parameters, "declared parameters")
        _training(found, options, tape.costs(weights.ACTIVATIONS[train]), full, trainable, train, largest, numbers)
    return found


def _sequence(found: Analysis, report: Report, options: Options) -> int:
    """The length to be used, 0 where the model takes none; what is ignored or too long is told."""
    sizes = transformers.sizes_of(report) if report.architecture == "transformer" else None
    if report.family in _NO_SEQUENCE or (sizes is not None and sizes.patches):
        if options.sequence is not None:
            what = "picture's patches are its sequence" if sizes is not None else "model takes no sequence"
            found.notes.append(f"--sequence is ignored: the {what}.")
        return 0
    if sizes is None:
        takes = report.architecture in ("rnn", "transformer", "state_space") or report.family in ("nlp", "audio")
        return options.sequence or (STEPS if takes else 0)
    sequence = options.sequence or transformers.usual_sequence(sizes)
    if options.sequence is None:
        found.notes.append(f"Sequences of {sequence} tokens; --sequence asks about others.")
    elif sizes.longest and sequence > sizes.longest:
        found.notes.append(f"The model was made for {sizes.longest} tokens at most.")
    return sequence


def _weights(
    found: Analysis, report: Report, options: Options, infer: str, numbers: TraceNumbers | None
) -> None:  # fmt: skip
    if not report.listing and numbers is not None:
        found.weights = traced(numbers.weight_bytes, f"of the configuration, as {infer}")
    elif options.dtype is not None:
        found.weights = weights.in_dtype(report, options.dtype)
    else:
        found.weights = weights.as_stored(report)


def _trained_weights(report: Report, dtype: str, numbers: TraceNumbers | None) -> Quantity:
    if not report.listing and numbers is not None:
        value = numbers.parameters * weights.ITEMSIZES[dtype]
        return traced(value, f"of the configuration, as {dtype}")
    return weights.in_dtype(report, dtype)


def _without_tensors(found: Analysis, report: Report) -> None:
    """Trees, estimators and what else counts no parameters: their file is all that is known."""
    size = float(report.size_bytes or 0)
    if found.options.infer:
        found.inference_memory = ruled(
            2 * size + memory.LIBRARY_BYTES, "the file's size, once read and once as objects", 0.5, 3.0
        )
    if found.options.train:
        found.notes.append("What training takes depends on the data, not on this file; it is not estimated.")
    found.notes.append("FLOPs are not estimated: nothing here is computed from counted parameters.")


def _cache_itemsize(report: Report, dtype: str) -> float:
    """llama.cpp keeps keys and values as float16 unless told otherwise; others in the dtype they compute in."""
    return 2.0 if report.format == "gguf" else weights.ACTIVATIONS[dtype] if dtype != "mixed" else 2.0


def _costs(report: Report, path: Path, batch: int, sequence: int, itemsize: float, cache: float) -> Costs:
    """By the first rule that knows this kind of model."""
    if report.format == "onnx":
        with Source(path) as source:
            tape = onnx_shapes.tape_of(report, source, batch, sequence)
        if any(step.flops for step in tape.steps):
            return _with_cache(tape.costs(itemsize), report, batch, sequence, cache)
    if report.format in ("keras", "keras_h5"):
        with Source(path) as source:
            made = keras_shapes.tape_of(configuration(source), batch, sequence)
        if made is not None and any(step.flops for step in made.steps):
            return keras_shapes.packed(made.costs(itemsize), weights.largest_elements(report) * itemsize)
    if report.architecture == "transformer" and (sizes := transformers.sizes_of(report)) is not None:
        return transformers.costs(report, sizes, batch, sequence, itemsize, cache)
    known = state_dicts.resnet(report, batch)
    if known is not None:
        return known.costs(itemsize)
    found = state_dicts.recurrent(report, batch, sequence, itemsize) or state_dicts.dense(report, batch, itemsize)
    return found or state_dicts.unknown(report, batch, itemsize, weights.in_dtype(report, "float32").value)


def _with_cache(costs: Costs, report: Report, batch: int, sequence: int, itemsize: float) -> Costs:
    sizes = transformers.sizes_of(report) if transformers.generates(report) else None
    if sizes is None:
        return costs
    cache = transformers.costs(report, sizes, batch, sequence, itemsize, itemsize).kv_cache
    return Costs(costs.forward, costs.kept, costs.passing, cache)


def _inference(found: Analysis, costs: Costs, numbers: TraceNumbers | None) -> None:
    assert found.weights is not None
    found.kv_cache = costs.kv_cache
    if numbers is None:
        found.inference_flops = costs.forward
        found.inference_memory = memory.inference_ruled(found.weights, costs)
        found.activations = costs.passing
        return
    said = "counted while the model ran on tensors without storage"
    found.inference_flops = traced(numbers.forward_flops, said, unit="FLOP")
    found.inference_memory = memory.inference_traced(numbers, found.weights.value)
    found.activations = traced(numbers.forward_bytes, f"alive at once during inference, {said}", 1.0, 1.1)


def _training(
    found: Analysis,
    options: Options,
    costs: Costs,
    full: Quantity,
    trainable: tuple[int, str],
    dtype: str,
    largest: int,
    numbers: TraceNumbers | None,
) -> None:
    """`full`: the weights as they are trained; `trainable`: how many have a gradient, and which those are."""
    count, which = trainable
    optimizer = OPTIMIZERS[options.optimizer]
    item = weights.ITEMSIZES[dtype]
    scale = 1.0 if optimizer.name == "adam8bit" else item / 4
    kept = "float32" if dtype == "mixed" else dtype
    known = exact if full.method is not Method.rule else _about
    found.gradients = known(count * item, f"one {kept} for each of {count:,} {which}")
    found.optimizer_state = known(round(count * optimizer.state_bytes * scale), f"{optimizer.name}: {optimizer.why}")
    if dtype == "mixed":
        full = Quantity(full.value * 1.5, full.low, full.high * 1.5, "bytes", Method.rule, "with bfloat16 copies")
    if numbers is None:
        found.activations = costs.kept
        found.step_flops = _trained_flops(costs)
        found.training_memory = memory.training_ruled(
            full, found.gradients, found.optimizer_state, costs, optimizer, largest * item
        )
        return
    said = "counted while the model ran on tensors without storage"
    found.step_flops = traced(numbers.step_flops, said, unit="FLOP")
    found.activations = traced(numbers.saved_bytes, f"kept for the backward pass, {said}", 1.0, 1.1)
    found.training_memory = memory.training_traced(numbers, full.value, found.optimizer_state.value, optimizer)


def _about(value: float, why: str) -> Quantity:
    return ruled(value, why, 0.7, 1.4)


def _trained_flops(costs: Costs) -> Quantity | None:
    """Two products backward for each one forward, but for the first layer, which needs no gradient of its input."""
    forward = costs.forward
    if forward is None:
        return None
    factor = costs.backward_factor
    return Quantity(forward.value * factor, forward.low * (factor - 0.5), forward.high * factor, forward.unit,
                    forward.method, f"{factor:g} x forward; {forward.why}")  # fmt: skip
