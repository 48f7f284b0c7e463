"""From what a graph computes, takes and gives to what it is for: the rules for formats that keep operators or layers.

A graph seldom says its purpose. What is decided here from ports and operators is `inferred` where the shapes leave no
other reading (token ids, pictures of three channels), and `guessed` otherwise; what can't be told stays unknown.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from hivenode.models.identify.report import UNKNOWN, Confidence, Port, Report, Tensor


@dataclass(slots=True)
class Mix:
    """What a graph is made of, in words common to all formats.

    Attributes:
        kinds: how often each occurs. Counted are: conv1d, conv2d, conv3d, conv_transpose, dense (a product with a
            constant), product (of two computed values), recurrent, attention, softmax, norm, batch_norm, embedding,
            upsample, pool, suppression (of boxes), tree, linear_model, spectrum, tokens (strings cut to pieces).
        inputs, outputs: ports, as in the report.
        names: a sample of tensor, node or layer names.
        last: the kind of the last activation (softmax, sigmoid, tanh, linear), if known.
        repeated: how often the block of a transformer occurs, if the format says so.
    """

    kinds: Counter[str] = field(default_factory=Counter)
    inputs: list[Port] = field(default_factory=list)
    outputs: list[Port] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    last: str | None = None
    repeated: int | None = None

    def any(self, *kinds: str) -> int:
        """How often any of `kinds` occurs."""
        return sum(self.kinds[kind] for kind in kinds)


_BLOCK = re.compile(r"(?:^|[./_])(?:layers?|blocks?|h|encoder_layer|resblocks)[._](\d{1,3})(?=[./_]|$)")
_WORDS = {"input_ids", "token_ids", "input_word_ids", "decoder_input_ids", "tokens", "text"}
_SOUND = re.compile(
    r"(^|[_./:])(audio|waveform|wav|mel|spectrogram|input_values|input_features|fbank|speech|pcm)($|[_./:])"
)
_PICTURE = re.compile(r"(^|[_./:])(pixel_values|images?|img|picture|frames?)($|[_./:\d])")
_STATE = re.compile(r"(^|[_./:])(obs|observations?|actor_obs)($|[_./:\d])")
_TASK_BY_OUTPUT = (
    ({"start_logits", "end_logits"}, "question_answering"),
    ({"last_hidden_state"}, "feature_extraction"),
    ({"sentence_embedding"}, "sentence_embedding"),
    ({"pred_boxes"}, "object_detection"),
    ({"logits_per_image"}, "zero_shot_image_classification"),
)


OF_WEIGHTS = frozenset(
    ("conv1d", "conv2d", "conv3d", "conv_transpose", "dense", "product", "recurrent", "embedding", "attention")
)
"""Kinds that are better counted by weights than by operators, where functions stand in a file several times."""
_CELL = re.compile(r"recurrent_kernel|(lstm|gru|rnn)_?cell\w{0,64}/kernel|weight_hh", re.IGNORECASE)
_QUERY = re.compile(r"(^|[/_])(query|q_proj|qkv|c_attn)(/|_)\w*(kernel|weight|w)$", re.IGNORECASE)
_END = 200
"""Characters of a name in which its last parts are looked for."""
_ATTENTION = re.compile(r"(^|[/_])(query|key|value|attention_output)/kernel$")
_KERNELS = ("kernel", "depthwise_kernel", "_kernel", "weights", "w")
_BY_AXES = {2: "dense", 3: "conv1d", 4: "conv2d", 5: "conv3d"}


def of_weights(tensors: list[Tensor]) -> Mix:
    """What the names and shapes of TensorFlow's variables tell of the layers they belong to."""
    mix = Mix(names=[tensor.name for tensor in tensors][:5000])
    for tensor in (tensor for tensor in tensors if tensor.shared_with is None):
        name, axes = tensor.name.split(":")[0], len(tensor.shape)
        last = name.rsplit("/", 1)[-1].lower()
        if _QUERY.search(name[-_END:]):
            mix.kinds["attention"] += 1
        elif _CELL.search(name):
            mix.kinds["recurrent"] += 1
        elif last in ("embeddings", "embedding", "word_embeddings") or "embedding_weights" in last:
            mix.kinds["embedding"] += 1
        elif last in ("gamma", "moving_mean"):
            mix.kinds["norm" if last == "gamma" else "batch_norm"] += 1
        elif last.startswith(_KERNELS) and not _ATTENTION.search(name) and axes in _BY_AXES:
            mix.kinds["conv_transpose" if "transpose" in name.lower() and axes > 2 else _BY_AXES[axes]] += 1
    return mix


def recognise(report: Report, mix: Mix) -> None:
    """Fill in family, task, architecture and layers, as far as they are not known from the file itself."""
    _architecture(report, mix)
    _family(report, mix)
    _task(report, mix)
    _layers(report, mix)


def _say(report: Report, how: Confidence, evidence: str, **fields: str | int | None) -> None:
    """`report.know`, but never over what is known already."""
    for name, value in fields.items():
        if value is not None and (getattr(report, name) in (None, UNKNOWN)):
            report.know(how, evidence, **{name: value})


def _architecture(report: Report, mix: Mix) -> None:
    inferred, guessed = Confidence.inferred, Confidence.guessed
    convolutions = mix.any("conv1d", "conv2d", "conv3d", "conv_transpose")
    attention = mix.kinds["attention"] or min(mix.kinds["softmax"], mix.kinds["product"] // 2)
    names = _port_names(mix.inputs)
    if {"sample", "timestep"} <= names or {"x", "timesteps"} <= names:
        _say(report, inferred, "inputs: a noisy sample and its time step", architecture="diffusion")
    elif mix.kinds["tree"]:
        _say(report, inferred, "operators: decision trees", architecture="tree_based")
    elif mix.kinds["linear_model"] and not mix.any("dense", "recurrent") and not convolutions:
        _say(report, inferred, "operators: a linear model", architecture="linear")
    elif _generates(mix, convolutions):
        _say(report, guessed, "a flat input is brought up to a picture by transposed convolutions", architecture="gan")
    elif attention and (attention * 4 >= convolutions or (mix.kinds["attention"] > 3 and mix.kinds["norm"])):
        _say(report, inferred, f"operators: {attention} x attention", architecture="transformer")
    elif mix.kinds["recurrent"]:
        _say(report, inferred, f"operators: {mix.kinds['recurrent']} x recurrent", architecture="rnn")
    elif convolutions:
        _say(report, inferred, f"operators: {convolutions} x convolution", architecture="cnn")
    elif mix.kinds["dense"] == 1 and not mix.any("embedding", "norm"):
        _say(report, inferred, "operators: one dense layer", architecture="linear")
    elif mix.kinds["dense"]:
        _say(report, inferred, f"operators: {mix.kinds['dense']} x dense", architecture="neural_network")


def _generates(mix: Mix, convolutions: int) -> bool:
    """A generator: one vector in, one picture out, made larger on the way."""
    return (
        mix.kinds["conv_transpose"] + mix.kinds["upsample"] >= 2
        and convolutions >= 2
        and len(mix.inputs) == 1
        and _axes(mix.inputs[0]) in (2, 4)
        and _side(mix.inputs[0]) == 1
        and (mix.last == "tanh" or any(_side(port) >= 8 for port in mix.outputs))
    )


def _family(report: Report, mix: Mix) -> None:
    inferred, guessed = Confidence.inferred, Confidence.guessed
    names = _port_names(mix.inputs)
    if words := names & _WORDS:
        _say(report, inferred, f"input {min(words)}", family="nlp")
    elif any(_SOUND.search(name) for name in names):
        _say(report, inferred, "an input is named as sound", family="audio")
    elif names & {"sr", "sample_rate", "sampling_rate"}:
        _say(report, inferred, "an input is a sampling rate", family="audio")
    elif any(_PICTURE.search(name) for name in names) or report.architecture == "diffusion":
        _say(report, inferred, "an input is named as a picture", family="computer_vision")
    elif any(_STATE.search(name) for name in names):
        _say(report, guessed, "an input is named as an observation", family="reinforcement_learning")
    elif mix.kinds["spectrum"]:
        _say(report, guessed, "operators: a Fourier transform of the input", family="audio")
    elif mix.kinds["conv2d"] and any(_is_picture(port) for port in mix.inputs):
        _say(report, inferred, "input: a picture (four axes, 1, 3 or 4 channels)", family="computer_vision")
    elif any(_is_wave(port) for port in mix.inputs) and mix.any("conv1d", "conv2d", "recurrent"):
        _say(report, guessed, "input: one long series of floating-point numbers", family="audio")
    elif report.architecture == "gan":
        _say(report, guessed, "output: a picture", family="computer_vision")
    elif mix.kinds["conv2d"] and any(_axes(port) == 4 for port in mix.inputs):
        _say(report, guessed, "two-dimensional convolutions over an input of four axes", family="computer_vision")
    elif mix.any("tree", "linear_model"):
        _say(report, inferred, "operators over columns", family="tabular")
    elif mix.kinds["tokens"] or (mix.kinds["embedding"] and mix.any("attention", "recurrent") and _ids(mix)):
        _say(report, guessed, "embeddings of whole numbers in a sequence", family="nlp")
    elif _flat(mix) and not mix.any(
        "conv1d", "conv2d", "conv3d", "conv_transpose", "recurrent", "attention", "embedding"
    ):
        _say(report, guessed, "dense layers over one row of numbers", family="tabular")


def _task(report: Report, mix: Mix) -> None:
    inferred, guessed = Confidence.inferred, Confidence.guessed
    names = _port_names(mix.outputs)
    for wanted, task in _TASK_BY_OUTPUT:
        if wanted <= names:
            _say(report, inferred, f"outputs {', '.join(sorted(wanted))}", task=task)
    if report.architecture == "diffusion":
        _say(report, inferred, "inputs of a denoiser", task="image_generation")
    if report.architecture == "gan":
        _say(report, guessed, "a generator of pictures", task="image_generation")
    last = mix.outputs[0] if mix.outputs else None
    width = last.shape[-1] if last is not None and last.shape else None
    if report.family == "nlp":
        _text_task(report, mix, names)
    elif report.family == "computer_vision":
        _picture_task(report, mix, last)
    elif report.family == "audio" and mix.any("spectrum", "recurrent", "conv1d", "conv2d") and _is_decision(mix):
        _say(report, guessed, "sound in, a short row of scores out", task="audio_classification")
    elif report.family == "tabular":
        if "output_probability" in names or "probabilities" in names or "output_label" in names:
            _say(report, inferred, "outputs: labels and probabilities", task="classification")
        elif mix.last in ("softmax", "sigmoid"):
            _say(report, inferred, f"the last step is a {mix.last}", task="classification")
        elif width == 1:
            _say(report, guessed, "one number out", task="regression")


def _text_task(report: Report, mix: Mix, names: set[str]) -> None:
    guessed = Confidence.guessed
    shape = next((port.shape for port in mix.outputs if port.name.split(":")[0] in ("logits", "output_0")), None)
    if any(name.startswith(("past_key_values", "past.", "present")) for name in names | _port_names(mix.inputs)):
        _say(report, Confidence.inferred, "keys and values of the past go in or out", task="text_generation")
    elif shape is not None and len(shape) == 2:
        _say(report, guessed, "one row of scores for each text", task="text_classification")
    elif shape is not None and len(shape) == 3 and shape[-1] > 1000:
        _say(report, guessed, f"{shape[-1]} scores for each token", task="text_generation")
    elif shape is not None and len(shape) == 3 and shape[-1] > 0:
        _say(report, guessed, f"{shape[-1]} scores for each token", task="token_classification")
    elif mix.last in ("softmax", "sigmoid") and all(_axes(port) in (None, 2) for port in mix.outputs):
        _say(report, guessed, f"the last step is a {mix.last}", task="text_classification")


def _row(shape: tuple[int, ...]) -> tuple[int, ...]:
    """A shape without the axes of one pixel that pooling leaves behind."""
    return shape[:2] if shape[2:] == (1, 1) else shape


def _picture_task(report: Report, mix: Mix, last: Port | None) -> None:
    guessed = Confidence.guessed
    if mix.kinds["suppression"] or any("box" in name for name in _port_names(mix.outputs)):
        _say(report, Confidence.inferred, "boxes are chosen or given out", task="object_detection")
    elif last is None or last.shape is None:
        return
    elif len(mix.outputs) == 1 and len(_row(last.shape)) == 2 and _row(last.shape)[-1] != 1:
        _say(report, guessed, "one picture in, one row of scores out", task="image_classification")
    elif len(mix.outputs) == 1 and len(last.shape) == 2 and mix.last == "sigmoid":
        _say(report, guessed, "one picture in, one probability out", task="image_classification")
    elif len(last.shape) == 3 and mix.kinds["upsample"]:
        _say(report, guessed, "rows of candidates out, from maps of several sizes", task="object_detection")
    elif len(last.shape) == 4 and mix.any("upsample", "conv_transpose"):
        _say(report, guessed, "a map as large as the picture out", task="image_segmentation")


def _layers(report: Report, mix: Mix) -> None:
    if mix.repeated:
        _say(report, Confidence.read, "declared", layers=mix.repeated)
        return
    if report.architecture == "transformer":
        found = {int(match.group(1)) for name in mix.names for match in [_BLOCK.search(name)] if match}
        if len(found) > 1 and found == set(range(len(found))):
            _say(report, Confidence.inferred, "numbered blocks in the names", layers=len(found))
            return
    weighty = mix.any("conv1d", "conv2d", "conv3d", "conv_transpose", "dense", "recurrent", "embedding")
    if weighty:
        _say(report, Confidence.inferred, "operators or layers that hold weights", layers=weighty)


def _port_names(ports: list[Port]) -> set[str]:
    return {port.name.lower().split(":")[0].rsplit("/", 1)[-1].removeprefix("serving_default_") for port in ports}


def _axes(port: Port) -> int | None:
    return None if port.shape is None else len(port.shape)


def _side(port: Port) -> int:
    """The longest side of a picture; 1 for what is none."""
    shape = port.shape or ()
    if len(shape) != 4:
        return 1
    inner = shape[2:] if shape[1] in (1, 3, 4) or shape[3] not in (1, 3, 4) else shape[1:3]
    return max(inner)


def _is_picture(port: Port) -> bool:
    shape = port.shape
    return shape is not None and len(shape) == 4 and (shape[1] in (1, 3, 4) or shape[3] in (1, 3, 4))


def _is_wave(port: Port) -> bool:
    shape = port.shape
    if shape is None or port.dtype not in ("float32", "float16", "float64", "bfloat16"):
        return False
    inner = [size for size in shape[1:] if size != 1]
    return len(shape) in (2, 3) and len(inner) == 1 and (inner[0] >= 4000)


def _is_decision(mix: Mix) -> bool:
    shape = mix.outputs[0].shape if mix.outputs else None
    return shape is not None and len(shape) <= 2 and bool(shape) and 1 <= shape[-1] <= 1000


def _flat(mix: Mix) -> bool:
    return bool(mix.inputs) and bool(mix.kinds["dense"]) and all(_axes(port) == 2 for port in mix.inputs)


def _ids(mix: Mix) -> bool:
    return all(port.dtype in ("int32", "int64") or _axes(port) == 2 for port in mix.inputs)
