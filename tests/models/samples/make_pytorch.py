"""Makes the samples in `pytorch/` and `pytorch.json`: tiny networks, each saved by torch's own calls.

Needs torch, safetensors and torchvision (for names and shapes of real networks, saved without their numbers):

    python tests/models/samples/make_pytorch.py

What is expected of each file is what torch itself says of the network: its parameters are counted here, by torch.
"""

from __future__ import annotations

import importlib
import io
import json
import pickle
import re
import shutil
import struct
import sys
import tarfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp
from safetensors.torch import save_file
from torch import nn

OUT = Path(__file__).parent / "pytorch"
EXPECTED: dict[str, dict[str, Any]] = {}
torch.manual_seed(3)


def numbers(network: nn.Module) -> int:
    return sum(parameter.numel() for parameter in network.parameters())


def expect(name: str, network: nn.Module | None, format: str, **fields: Any) -> None:
    EXPECTED[name] = {"format": format, "safe": True} | fields
    if network is not None:
        EXPECTED[name]["parameters"] = numbers(network)


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(torch.relu(self.norm(self.conv(x))).mean((2, 3)))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(12, 6)
        self.lstm = nn.LSTM(6, 6, batch_first=True)
        self.out = nn.Linear(6, 12, bias=False)
        self.out.weight = self.embedding.weight


class Sentiment(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(30, 6)
        self.lstm = nn.LSTM(6, 5, num_layers=2, bidirectional=True)
        self.fc = nn.Linear(10, 2)


def generator() -> nn.Module:
    """The generator of the DCGAN tutorial, with a fraction of its filters."""
    main = nn.Sequential(
        nn.ConvTranspose2d(10, 8, 4, 1, 0, bias=False), nn.BatchNorm2d(8), nn.ReLU(True),
        nn.ConvTranspose2d(8, 6, 4, 2, 1, bias=False), nn.BatchNorm2d(6), nn.ReLU(True),
        nn.ConvTranspose2d(6, 4, 4, 2, 1, bias=False), nn.BatchNorm2d(4), nn.ReLU(True),
        nn.ConvTranspose2d(4, 3, 4, 2, 1, bias=False), nn.Tanh(),
    )  # fmt: skip
    return nn.ModuleDict({"main": main})


def discriminator() -> nn.Module:
    main = nn.Sequential(
        nn.Conv2d(3, 4, 4, 2, 1, bias=False), nn.LeakyReLU(0.2), nn.Conv2d(4, 6, 4, 2, 1, bias=False),
        nn.BatchNorm2d(6), nn.LeakyReLU(0.2), nn.Conv2d(6, 8, 4, 2, 1, bias=False), nn.BatchNorm2d(8),
        nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 1, 0, bias=False),
    )  # fmt: skip
    return nn.ModuleDict({"main": main})


def mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, outputs))


def containers() -> None:
    """One network in every container torch has had."""
    network = Small()
    cnn = {"family": "computer_vision", "task": "image_classification", "architecture": "cnn"}
    torch.save(network.state_dict(), OUT / "state_dict.pt")
    expect("state_dict.pt", network, "torch_zip", **cnn)
    torch.save(network.state_dict(), OUT / "legacy.pth", _use_new_zipfile_serialization=False)
    expect("legacy.pth", network, "torch_legacy", **cnn)
    save_file(network.state_dict(), OUT / "plain.safetensors", metadata={"format": "pt"})
    expect("plain.safetensors", network, "safetensors", framework="pytorch", **cnn)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.zeros(2, 3, 8, 8)).sum().backward()
    optimizer.step()
    whole = {"epoch": 3, "model_state_dict": network.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    torch.save(whole, OUT / "checkpoint.pt")
    expect("checkpoint.pt", network, "torch_zip", **cnn)
    torch.save({"state_dict": network.state_dict(), "ema": network.state_dict(), "args": {"lr": 0.1}}, OUT / "ema.pt")
    expect("ema.pt", network, "torch_zip", **cnn)
    layers = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
    torch.save(layers, OUT / "module.pt")
    expect("module.pt", layers, "torch_zip", trainable_parameters=numbers(layers), architecture="cnn")
    torch.save(layers, OUT / "module_legacy.pt", _use_new_zipfile_serialization=False)
    expect("module_legacy.pt", layers, "torch_legacy", trainable_parameters=numbers(layers), architecture="cnn")
    torch.jit.script(network.eval()).save(OUT / "scripted.pt")
    expect("scripted.pt", network, "torchscript", model="Small", **cnn)
    torch.jit.trace(network, torch.zeros(2, 3, 8, 8)).save(OUT / "traced.pt")
    expect("traced.pt", network, "torchscript", model="Small", **cnn)
    torch.export.save(torch.export.export(network, (torch.zeros(2, 3, 8, 8),)), OUT / "exported.pt2")
    expect(
        "exported.pt2", network, "torch_export", model="Small", trainable_parameters=numbers(network),
        inputs=[{"name": "x", "dtype": "float32", "shape": [2, 3, 8, 8]}], **cnn,
    )  # fmt: skip
    dcp.save({"model": network.state_dict(), "optim": optimizer.state_dict()}, checkpoint_id=OUT / "distributed")
    expect("distributed", network, "torch_distributed", **cnn)
    deepspeed(network)
    expect("deepspeed", network, "deepspeed_directory", **cnn)
    old_tar(network.head)
    expect("oldest.tar", network.head, "torch_tar", architecture="linear", family="tabular")


def deepspeed(network: nn.Module) -> None:
    """As DeepSpeed's engine writes it under ZeRO-3: empty tensors, and their shapes beside them."""
    folder = OUT / "deepspeed" / "global_step7"
    folder.mkdir(parents=True)
    (folder.parent / "latest").write_text("global_step7")
    shapes = OrderedDict((name, parameter.shape) for name, parameter in network.named_parameters())
    state = {
        "module": OrderedDict((name, torch.empty(0, dtype=torch.float16)) for name in shapes),
        "param_shapes": [shapes], "dtype": torch.float16, "global_steps": 7, "ds_version": "0.16.0",
    }  # fmt: skip
    torch.save(state, folder / "zero_pp_rank_0_mp_rank_00_model_states.pt")
    flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
    optimizer = {"optimizer_state_dict": {"fp32_flat_groups": [flat], "zero_stage": 3}}
    torch.save(optimizer, folder / "zero_pp_rank_0_mp_rank_00_optim_states.pt")


def old_tar(layer: nn.Linear) -> None:
    """As torch 0.1.1 wrote it; torch.load of today reads it back."""
    tensors = OrderedDict((name, tensor.detach().contiguous()) for name, tensor in layer.state_dict().items())
    storages, listed = io.BytesIO(), io.BytesIO()
    pickle.dump(len(tensors), storages, 2)
    pickle.dump(len(tensors), listed, 2)
    for key, tensor in enumerate(tensors.values()):
        pickle.dump((key, "cpu", torch.FloatStorage), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((key, key, torch.FloatTensor), listed, 2)
        listed.write(struct.pack("<i4x", tensor.dim()))
        listed.write(struct.pack(f"<{2 * tensor.dim() + 1}q", *tensor.shape, *tensor.stride(), 0))
    pickle.dump([], storages, 2)
    main = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return next((str(key) for key, held in enumerate(tensors.values()) if held is value), None)

    Pickler(main, 2).dump(tensors)
    with tarfile.open(OUT / "oldest.tar", "w", format=tarfile.PAX_FORMAT) as tar:
        info = pickle.dumps({"protocol_version": 1000, "little_endian": True, "type_sizes": {}}, 2)
        members = (("sys_info", info), ("storages", storages.getvalue()), ("tensors", listed.getvalue()))
        for name, data in (*members, ("pickle", main.getvalue())):
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            tar.addfile(entry, io.BytesIO(data))
    back = torch.load(OUT / "oldest.tar", weights_only=False)
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def networks() -> None:
    """State dicts that only their names and shapes tell apart."""
    tied = Tied()
    torch.save(tied.state_dict(), OUT / "tied.pt")
    expect("tied.pt", tied, "torch_zip", family="nlp", task="text_generation", architecture="rnn", model="lstm")
    sentiment = Sentiment()
    torch.save(sentiment.state_dict(), OUT / "lstm.pt")
    expect(
        "lstm.pt", sentiment, "torch_zip", family="nlp", task="text_classification", architecture="rnn", model="lstm"
    )
    gru = nn.ModuleDict({"gru": nn.GRU(3, 4), "fc": nn.Linear(4, 1)})
    save_file(gru.state_dict(), OUT / "gru.safetensors")
    expect("gru.safetensors", gru, "safetensors", architecture="rnn", model="gru")
    gan = {"family": "computer_vision", "task": "image_generation", "architecture": "gan"}
    torch.save(generator().state_dict(), OUT / "generator.pth")
    expect("generator.pth", generator(), "torch_zip", model="DCGANGenerator", **gan)
    torch.save(discriminator().state_dict(), OUT / "discriminator.pth")
    expect("discriminator.pth", discriminator(), "torch_zip", model="DCGANDiscriminator", **gan)
    both = nn.ModuleDict({"generator": generator(), "discriminator": discriminator()})
    torch.save({name: part.state_dict() for name, part in both.items()}, OUT / "gan.pt")
    expect("gan.pt", both, "torch_zip", **gan)
    agent = {"family": "reinforcement_learning"}
    dqn = nn.ModuleDict({"q_net": mlp(4, 2)})
    torch.save(dqn.state_dict(), OUT / "dqn.pt")
    expect("dqn.pt", dqn, "torch_zip", task="q_learning", architecture="dqn", model="DQN", **agent)
    pair = nn.ModuleDict({"actor": mlp(4, 2), "critic": mlp(4, 1)})
    torch.save(pair.state_dict(), OUT / "actor_critic.pt")
    expect("actor_critic.pt", pair, "torch_zip", architecture="actor_critic", **agent)
    row = mlp(5, 1)
    torch.save(row.state_dict(), OUT / "regressor.pt")
    expect("regressor.pt", row, "torch_zip", family="tabular", task="regression", architecture="neural_network")
    half = nn.Linear(4, 4).to(torch.bfloat16)
    torch.save(half.state_dict(), OUT / "bfloat16.pt")
    expect("bfloat16.pt", half, "torch_zip", dtypes={"bfloat16": 20})


def torchvision_models() -> Any:
    """`torchvision.models`, also of a build whose own operators cannot be loaded beside this torch."""
    operators = torch.library.Library("torchvision", "FRAGMENT")
    while True:
        try:
            return importlib.import_module("torchvision.models")
        except RuntimeError as error:
            lacking = re.search(r"operator torchvision::(\w+) does not exist", str(error))
            if lacking is None:
                raise
            operators.define(f"{lacking.group(1)}(Tensor x) -> Tensor")
            for name in [name for name in sys.modules if name.startswith("torchvision")]:
                del sys.modules[name]


def zoo() -> None:
    """Real networks on the meta device: every name and shape, no numbers."""
    models = torchvision_models()
    picture = {"family": "computer_vision", "task": "image_classification"}
    for name, architecture in (("resnet18", "cnn"), ("vgg11", "cnn"), ("alexnet", "cnn")):
        with torch.device("meta"):
            network = getattr(models, name)()
        torch.save(network.state_dict(), OUT / f"{name}.pth")
        expect(f"{name}.pth", network, "torch_zip", model=name, architecture=architecture, **picture)


if __name__ == "__main__":
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir()
    containers()
    networks()
    zoo()
    (OUT.parent / "pytorch.json").write_text(json.dumps(EXPECTED, indent=1) + "\n")
