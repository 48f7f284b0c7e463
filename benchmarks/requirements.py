"""What models really take, beside what `hivenode analyze` says they take.

    python benchmarks/requirements.py [--json] [--alive] [--half] [--only NAME ...]

Each model is built, used and trained in a process of its own that has warmed its framework up on a tiny one before.
Measured is anonymous memory: the kernel's high-water mark of the process less its file-backed pages, above what it was
after the warm-up; the third of three passes or steps is as large as any later one. `--alive` measures the same with an
allocator that keeps nothing (every block of 64 kB and more mapped), to tell what a model takes from what malloc keeps.
FLOPs are counted by torch.utils.flop_counter while the real model runs, with attention written out and recurrences
step by step; beside them stand the tracer's, of the same module.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

TIGHT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
STEPS = 3


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--alive", action="store_true", help="also with an allocator that keeps nothing")
    parser.add_argument(
        "--half", action="store_true", help="with half the batch: the allocator's part was fitted to all"
    )
    parser.add_argument("--from", dest="rows", nargs="*", type=Path, help="print what earlier runs with --json found")
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--child", nargs=2, metavar=("NAME", "WHAT"))
    parser.add_argument("--file", type=Path)
    given = parser.parse_args()
    if given.half:
        MODELS.update({name: (batch // 2, sequence) for name, (batch, sequence) in MODELS.items()})
    if given.child:
        sys.stdout.write(json.dumps(_child(*given.child, given.file)) + "\n")
        return
    if given.rows:
        _table([row for path in given.rows for row in json.loads(path.read_text())])
        return
    rows = [_row(name, given) for name in given.only]
    if given.json:
        sys.stdout.write(json.dumps(rows, indent=2) + "\n")
        return
    _table(rows)


def _row(name: str, given: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        predicted = _run(name, "predict", given, Path(folder))
    row = {"model": name, "predicted": predicted}
    for what in ("infer", "train"):
        row[what] = _run(name, what, given)["bytes"]
        row[f"{what}_alive"] = _run(name, what, given, tight=True)["bytes"] if given.alive else None
    return row


def _run(
    name: str, what: str, given: argparse.Namespace, folder: Path | None = None, *, tight: bool = False
) -> dict[str, Any]:
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3", "OMP_NUM_THREADS": "1", **(TIGHT if tight else {})}
    command = [sys.executable, __file__, "--child", name, what, *(("--file", str(folder)) if folder else ())]
    command += ["--half"] if given.half else []
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{name} {what}: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def _table(rows: list[dict[str, Any]]) -> None:
    out = sys.stdout.write
    out("| model | known by | weights | inference: measured / said | training step: measured / said "
        "| alive: inference, training | FLOPs, inference and step |\n|---|---|---|---|---|---|---|\n")  # fmt: skip
    for row in rows:
        said = row["predicted"]
        cells = [row["model"], said["training"]["method"], f"{said['weights'] - said['stored']:+d} B"]
        for what, key in (("infer", "inference"), ("train", "training")):
            cells.append(f"{row[what] / 1e6:.0f} / {said[key]['value'] / 1e6:.0f} MB, "
                         f"{said[key]['value'] / row[what] - 1:+.0%}")  # fmt: skip
        alive = [
            (said[key]["low"], row[f"{what}_alive"]) for what, key in (("infer", "inference"), ("train", "training"))
        ]
        cells.append(", ".join("-" if found is None else f"{low / found - 1:+.0%}" for low, found in alive))
        counted, here = said["counted"], said["traced"] or said
        cells.append(
            "-"
            if counted is None
            else f"{here['forward'] / counted['forward'] - 1:+.1%}, {here['step'] / counted['step'] - 1:+.1%}"
        )
        out(f"| {' | '.join(cells)} |\n")
    errors = [abs(row["predicted"][key]["value"] / row[what] - 1)
              for row in rows for what, key in (("infer", "inference"), ("train", "training"))]  # fmt: skip
    out(f"\n{sum(error <= 0.2 for error in errors)} of {len(errors)} peaks within 20 %, worst {max(errors):.0%}.\n")


# --- the models ----------------------------------------------------------------------------------------------------


def _resnet(name: str) -> Any:
    from torch import nn

    deep = name == "resnet50"

    def conv(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Module:
        return nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)

    class Block(nn.Module):
        def __init__(self, inputs: int, width: int, stride: int) -> None:
            super().__init__()
            outputs = width * 4 if deep else width
            self.conv1 = conv(inputs, width, 1 if deep else 3, 1 if deep else stride)
            self.bn1 = nn.BatchNorm2d(width)
            self.conv2 = conv(width, width, 3, stride if deep else 1)
            self.bn2 = nn.BatchNorm2d(width)
            if deep:
                self.conv3, self.bn3 = conv(width, outputs, 1), nn.BatchNorm2d(outputs)
            self.relu = nn.ReLU(inplace=True)
            self.downsample = None
            if stride != 1 or inputs != outputs:
                self.downsample = nn.Sequential(conv(inputs, outputs, 1, stride), nn.BatchNorm2d(outputs))

        def forward(self, x: Any) -> Any:
            y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
            if deep:
                y = self.bn3(self.conv3(self.relu(y)))
            return self.relu(y + (x if self.downsample is None else self.downsample(x)))

    class ResNet(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv1, self.bn1 = conv(3, 64, 7, 2), nn.BatchNorm2d(64)
            self.relu, self.maxpool = nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, 1)
            inputs = 64
            for stage, (width, count) in enumerate(
                zip((64, 128, 256, 512), (3, 4, 6, 3) if deep else (2, 2, 2, 2), strict=True), 1
            ):
                blocks = []
                for number in range(count):
                    blocks.append(Block(inputs, width, 2 if stage > 1 and not number else 1))
                    inputs = width * (4 if deep else 1)
                self.add_module(f"layer{stage}", nn.Sequential(*blocks))
            self.fc = nn.Linear(inputs, 1000)

        def forward(self, x: Any) -> Any:
            x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
            for stage in range(1, 5):
                x = self.get_submodule(f"layer{stage}")(x)
            return self.fc(x.mean((2, 3)))

    return ResNet()


def _lstm() -> Any:
    from torch import nn

    class Lstm(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = nn.Embedding(20_000, 512)
            self.lstm = nn.LSTM(512, 512, 2, batch_first=True)
            self.out = nn.Linear(512, 10)

        def forward(self, x: Any) -> Any:
            return self.out(self.lstm(self.embedding(x))[0][:, -1])

    return Lstm()


def _autoencoder() -> Any:
    from torch import nn

    return nn.Sequential(
        nn.Linear(3072, 2048), nn.ReLU(), nn.Linear(2048, 1024), nn.ReLU(), nn.Linear(1024, 256), nn.ReLU(),
        nn.Linear(256, 1024), nn.ReLU(), nn.Linear(1024, 2048), nn.ReLU(), nn.Linear(2048, 3072),
    )  # fmt: skip


def _transformer(name: str) -> Any:
    import transformers as t

    small = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6, "intermediate_size": 1536}
    match name:
        case "bert":
            return t.BertForSequenceClassification(t.BertConfig(**small))
        case "vit":
            return t.ViTForImageClassification(t.ViTConfig(**small))
        case "gpt2":
            return t.GPT2LMHeadModel(t.GPT2Config(n_embd=384, n_layer=6, n_head=6))
        case "llama":
            return t.LlamaForCausalLM(t.LlamaConfig(**small, num_key_value_heads=2, vocab_size=32_000))
    return t.T5ForConditionalGeneration(
        t.T5Config(d_model=384, d_ff=1536, num_layers=4, num_heads=6, decoder_start_token_id=0)
    )


def _zoo(name: str) -> Any:
    from hivenode.models.declared import layers_of
    from hivenode.training.frameworks.torch_models import build

    card = _card(name)
    return build(layers_of(card.model, card.info) or ())


def _card(name: str) -> Any:
    from hivenode.data.info import DataInfo
    from hivenode.data.normalisation import AS_THEY_ARE
    from hivenode.models.card import ModelCard
    from hivenode.spec.model import ModelSpec

    params, shape = ZOO[name]
    info = DataInfo("arrays", 1000, shape, 10, tuple("0123456789"), "classification")
    return ModelCard("torch", ModelSpec(source=f"zoo:{name}", params=params), info, AS_THEY_ARE)


def _keras() -> Any:
    import keras

    layers = [keras.Input((64, 64, 3))]
    for filters in (64, 128, 256):
        layers.append(keras.layers.Conv2D(filters, 3, padding="same", activation="relu"))
        layers.append(keras.layers.BatchNormalization())
        layers.append(keras.layers.MaxPooling2D())
    layers += [keras.layers.Flatten(), keras.layers.Dense(512, activation="relu"), keras.layers.Dense(10)]
    return keras.Sequential(layers)


ZOO: dict[str, tuple[dict[str, int], tuple[int, ...]]] = {
    "mlp": ({"hidden": 2048, "depth": 4}, (3, 32, 32)),
    "cnn": ({"channels": 64, "hidden": 512, "blocks": 3}, (3, 64, 64)),
}
MODELS: dict[str, tuple[int, int]] = {
    "mlp": (256, 1), "cnn": (32, 1), "autoencoder": (256, 1), "resnet18": (16, 1), "resnet50": (8, 1),
    "bert": (8, 128), "gpt2": (4, 256), "llama": (4, 256), "t5": (8, 128), "vit": (8, 1), "lstm": (32, 128),
    "keras_cnn": (32, 1),
}  # fmt: skip
"""Batch and sequence."""
TRANSFORMERS = ("bert", "gpt2", "llama", "t5", "vit")


def _made(name: str) -> Any:
    if name in ZOO:
        return _zoo(name)
    if name in TRANSFORMERS:
        return _transformer(name)
    return {"lstm": _lstm, "autoencoder": _autoencoder}[name]() if name in ("lstm", "autoencoder") else _resnet(name)


def _fed(name: str) -> dict[str, Any]:
    import torch

    batch, sequence = MODELS[name]
    if name in ("resnet18", "resnet50"):
        return {"x": torch.randn(batch, 3, 224, 224)}
    if name in ZOO:
        return {"input": torch.randn(batch, *ZOO[name][1])}
    if name == "autoencoder":
        return {"input": torch.randn(batch, 3072)}
    if name == "vit":
        return {"pixel_values": torch.randn(batch, 3, 224, 224), "labels": torch.randint(0, 2, (batch,))}
    tokens = torch.randint(0, 20_000, (batch, sequence))
    if name == "lstm":
        return {"x": tokens}
    if name == "bert":
        return {"input_ids": tokens, "labels": torch.randint(0, 2, (batch,))}
    return {"input_ids": tokens, "labels": tokens} | ({"decoder_input_ids": tokens} if name == "t5" else {})


# --- in a process of its own ---------------------------------------------------------------------------------------


def _child(name: str, what: str, folder: Path | None) -> dict[str, Any]:
    if what == "predict":
        assert folder is not None
        return _predict(name, folder)
    if name.startswith("keras"):
        return {"bytes": _keras_peak(what == "train")}
    return {"bytes": _torch_peak(name, what == "train")}


def _status() -> tuple[int, int]:
    """Anonymous bytes, and the high-water mark less what is backed by files."""
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
    size = {key: int(lines[key].split()[0]) * 1024 for key in ("RssAnon", "RssFile", "RssShmem", "VmHWM")}
    return size["RssAnon"], size["VmHWM"] - size["RssFile"] - size["RssShmem"]


def _torch_peak(name: str, train: bool) -> int:
    import torch

    torch.set_num_threads(1)
    if name in TRANSFORMERS:
        import transformers

        assert transformers.PreTrainedModel  # imported for good before the baseline is taken
    _use(torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(144, 8)),
         lambda: {"input": torch.randn(2, 3, 8, 8)}, train)  # fmt: skip
    before, _ = _status()
    _use(_made(name), lambda: _fed(name), train)
    return _status()[1] - before


def _use(model: Any, feed: Callable[[], dict[str, Any]], train: bool) -> None:
    import torch

    if not train:
        model.eval()
        with torch.no_grad():
            for _ in range(STEPS):
                batch = feed()
                batch.pop("labels", None)
                output = model(**batch)
                del batch, output
        return
    optimizer = torch.optim.Adam(model.parameters())
    for _ in range(STEPS):
        output = model(**feed())
        loss = _loss(output)
        del output
        loss.backward()
        del loss
        optimizer.step()
        optimizer.zero_grad()


def _loss(output: Any) -> Any:
    own = getattr(output, "loss", None)
    return own if own is not None else output.float().mean()


def _keras_peak(train: bool) -> int:
    import keras
    import numpy

    def use(model: Any, shape: tuple[int, ...], batch: int) -> None:
        x, y = numpy.zeros((batch, *shape), "float32"), numpy.zeros((batch, 10), "float32")
        if train:
            model.compile("adam", "mse")
        for _ in range(STEPS):
            if train:
                model.train_on_batch(x, y)
            else:
                model.predict_on_batch(x)

    tiny = keras.Sequential([keras.Input((8, 8, 3)), keras.layers.Conv2D(4, 3), keras.layers.BatchNormalization(),
                             keras.layers.MaxPooling2D(), keras.layers.Flatten(), keras.layers.Dense(10)])  # fmt: skip
    use(tiny, (8, 8, 3), 2)
    before, _ = _status()
    use(_keras(), (64, 64, 3), MODELS["keras_cnn"][0])
    return _status()[1] - before


def _counted(name: str) -> dict[str, Any]:
    """By torch's own counter around the real model; attention as products, recurrences step by step."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = _made(name)
    if name in TRANSFORMERS:
        model.set_attn_implementation("eager")
    found = {}
    with torch.backends.mkldnn.flags(enabled=name != "lstm"):
        for what in ("forward", "step"):
            model.train(what == "step")
            batch = _fed(name)
            if what == "forward":
                batch.pop("labels", None)
            with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(what == "step"):
                output = model(**batch)
                if what == "step":
                    _loss(output).backward()
            found[what] = counter.get_total_flops()
    if name == "resnet50":
        found["gmacs"] = found["forward"] / 2e9 / MODELS[name][0]
    return found


def _predict(name: str, folder: Path) -> dict[str, Any]:
    """Save the model as its library does, and analyze what is then on the disk."""
    from hivenode.models.analyze import Options, analyze, order_for
    from hivenode.models.identify import identify
    from hivenode.net.local import Trace
    from hivenode.worker.trace import answer

    path, stored = _saved(name, folder)
    batch, sequence = MODELS[name]
    options = Options(batch=batch, sequence=sequence if sequence > 1 else None)
    report = identify(path)
    order = order_for(path, report, options)
    numbers = None if isinstance(order, str) else answer(Trace(order)).numbers  # as the worker does
    found = analyze(path, report, options, numbers)
    assert found.weights is not None
    assert found.training_memory is not None
    assert found.inference_memory is not None
    assert found.inference_flops is not None
    assert found.step_flops is not None
    traced = _traced_here(name)
    return {
        "stored": stored,
        "weights": round(found.weights.value),
        "inference": _plain(found.inference_memory),
        "training": _plain(found.training_memory),
        "forward": found.inference_flops.value,
        "step": found.step_flops.value,
        "traced": traced,
        "counted": None if name.startswith("keras") else _counted(name),
    }


def _plain(quantity: Any) -> dict[str, Any]:
    return {"value": quantity.value, "low": quantity.low, "high": quantity.high, "method": quantity.method.value}


def _traced_here(name: str) -> dict[str, int] | None:
    """The worker's tracer on the same module, also where no file would lead to it."""
    if name.startswith("keras"):
        return None
    from hivenode.training.frameworks.torch_tracing import trace

    numbers = trace(lambda: _made(name), lambda module: _fed(name)) if name not in TRANSFORMERS else None
    return None if numbers is None else {"forward": numbers.forward_flops, "step": numbers.step_flops}


def _saved(name: str, folder: Path) -> tuple[Path, int]:
    """Where it is, and the bytes of all its tensors."""
    if name.startswith("keras"):
        model = _keras()
        model.save(folder / "model.keras")
        return folder / "model.keras", sum(int(w.numpy().nbytes) for w in model.weights)
    import torch

    model = _made(name)
    held = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in model.state_dict().values()}
    if name in TRANSFORMERS:
        model.save_pretrained(folder)
        return folder, sum(held.values())
    if name in ZOO:
        from hivenode.training import modelfile, tensorfiles

        tensors = {key: value.numpy() for key, value in model.state_dict().items()}
        tensorfiles.save(folder / "model.safetensors", tensors, modelfile.metadata(_card(name)))
        return folder / "model.safetensors", sum(held.values())
    torch.save(model.state_dict(), folder / "model.pt")
    return folder / "model.pt", sum(held.values())


if __name__ == "__main__":
    main()
