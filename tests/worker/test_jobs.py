"""Every ready job, for a few steps, from data to model to prediction, by real workers; and what others are told."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from hivenode.cli.jobs import located
from hivenode.data import shards
from hivenode.data.reading import read
from hivenode.data.sources import information
from hivenode.jobs.preparing import shared
from hivenode.jobs.workers import ForkWorkers
from hivenode.models.card import read_card
from hivenode.models.declared import describe
from hivenode.models.keras_configs.files import embedded
from hivenode.net.local import Brought, Failed, Finished, Log, Need, PeersReady, Predict, Predicted, Ready, Resources
from hivenode.spec.data import FILES, DataSpec
from hivenode.spec.job import JobSpec, TrainingSpec, read_job
from hivenode.spec.model import LoraSpec, ModelSpec
from hivenode.spec.values import BlobRef
from hivenode.training.loop import SCORED
from tests.worker.members import LIMITS, Member, begin, failure, plan

pytestmark = pytest.mark.asyncio(loop_scope="session")

JOBS = sorted((Path(__file__).resolve().parents[2] / "configs" / "jobs").glob("*.toml"))
STEPS = 3
TWO_THREADS = msgspec.structs.replace(LIMITS, threads=2)
"""As by the default settings on most machines: libraries that start threads do so within the walls."""
GROWN = {"RandomForestClassifier": 20, "Pipeline": 1, "VotingClassifier": 3}
"""Not made of steps, whatever `max_steps` says: how many units they have."""


class Pieces:
    """A file cut into pieces, and an answer to each wish for some."""

    def __init__(self, spec: JobSpec, folder: Path) -> None:
        folder.mkdir()
        self._folder = folder
        manifest = shards.write(read(spec.data), folder)
        (folder / "manifest").write_bytes(msgspec.json.encode(manifest))
        ref = BlobRef("0" * 64, (folder / "manifest").stat().st_size)
        self.spec = spec.model_copy(update={"data": shared(spec.data, manifest, ref)})
        self.resources = Resources(blobs={ref.digest: str(folder / "manifest")})

    def answer(self, wish: Need) -> Brought:
        return Brought(paths={ref.digest: str(self._folder / ref.digest) for ref in wish.blobs})


async def train(
    host: ForkWorkers, spec: JobSpec, directory: Path, resources: Resources | None = None
) -> tuple[Member, Finished]:
    member = await Member.start(host, limits=TWO_THREADS, framework=spec.runtime)
    pieces = None
    if spec.data.kind in FILES:
        pieces = Pieces(spec, directory / "pieces")
        spec, resources = pieces.spec, pieces.resources
    order = msgspec.structs.replace(begin(spec, plan([1.0]), 0, directory), resources=resources or Resources())
    member.handle.send(order)
    await member.expect(Ready)
    member.handle.send(PeersReady(peers=()))
    wishes = 0
    while pieces is not None and not member.all(Finished):
        await member.expect_any(Need, wishes + 1, Finished)
        for wish in member.all(Need)[wishes:]:
            wishes += 1
            member.handle.send(pieces.answer(wish))
    finished = await member.expect(Finished)
    await member.exit()
    return member, finished


async def ask(host: ForkWorkers, path: str, framework: str, **request: Any) -> Predicted | Failed:
    member = await Member.start(host, "predict", framework=framework)
    member.handle.send(Predict(**{"request": 1, "model": path, "inputs": []} | request))
    answer = await member.expect_any(Predicted, 1, Failed)
    member.handle.kill()
    await member.exit()
    return answer


@pytest.mark.parametrize("path", JOBS, ids=lambda path: path.stem)
async def test_a_ready_job(host: ForkWorkers, tmp_path: Path, path: Path) -> None:
    job = located(read_job(path), path.parent)
    job = job.model_copy(update={"model": embedded(job.model)})
    job = job.model_copy(update={"training": job.training.model_copy(update={"max_steps": STEPS, "batch_size": 16})})
    member, finished = await train(host, job, tmp_path)
    assert finished.step == GROWN.get(job.model.name, STEPS)
    assert all(math.isfinite(value) for value in finished.metrics.values())
    assert any("samples of" in line.event for line in member.all(Log)), "the data are summed up before training"
    card = read_card(Path(finished.path))
    info = card.info
    clusters = "KMeans" in job.model.name  # whatever else the data could be for
    assert ("accuracy" in finished.metrics) == (info.task in SCORED and not clusters)
    rows = [[1.0] * info.features] * 2
    answer = await ask(host, finished.path, job.runtime, inputs=rows)
    assert isinstance(answer, Predicted), answer
    assert np.isfinite(answer.outputs).all()
    if info.task == "text_to_text":
        assert len(answer.texts) == 2
    else:
        assert np.shape(answer.outputs) == (2, info.outputs)
    if info.task in ("classification", "language"):
        assert np.allclose(np.sum(answer.outputs, axis=1), 1, atol=1e-4)
    if info.labels:
        assert answer.labels == list(info.labels)


def job(model: Mapping[str, Any], source: str = "sklearn:digit_tokens", **training: Any) -> JobSpec:
    settings = {"epochs": 1, "max_steps": STEPS, "batch_size": 16, "optimizer": "adam", "learning_rate": 0.01}
    return JobSpec(
        name="test",
        model=ModelSpec(**model),
        data=DataSpec(source=source),
        training=TrainingSpec(**settings | training),
    )


BERT = {
    "model_type": "bert", "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
}  # fmt: skip


async def test_a_writer_goes_on_with_a_text(host: ForkWorkers, tmp_path: Path) -> None:
    gpt = job({"source": "zoo:gpt", "params": {"layers": 1, "width": 16}}, "sklearn:descriptions")
    _, finished = await train(host, gpt, tmp_path)
    answer = await ask(host, finished.path, "torch", texts=["The data", "a"], continue_tokens=5)
    assert isinstance(answer, Predicted)
    assert [len(text) <= 5 for text in answer.texts] == [True, True]
    refused = await ask(host, finished.path, "torch", texts=[""], continue_tokens=5)
    assert isinstance(refused, Failed)
    assert "empty" in refused.message


async def test_adapters_train_next_to_a_base_that_stands_still(host: ForkWorkers, tmp_path: Path) -> None:
    adapted = job({"source": "hf:config", "config": BERT, "lora": LoraSpec(rank=2)}, max_steps=2)
    member, finished = await train(host, adapted, tmp_path / "a")
    whole = describe(adapted.model, information(adapted.data)).parameters
    assert member.all(Ready)[0].parameters < whole / 5
    from safetensors.numpy import load_file

    tensors = load_file(finished.path)
    assert sum(tensor.size for tensor in tensors.values()) > whole
    assert any("lora_B" in name and tensor.any() for name, tensor in tensors.items())
    again = load_file((await train(host, adapted, tmp_path / "b"))[1].path)
    assert all(tensor.tobytes() == again[name].tobytes() for name, tensor in tensors.items()), "the same bits"
    answer = await ask(host, finished.path, "transformers", inputs=[[1.0] * 64])
    assert isinstance(answer, Predicted)


async def test_a_local_directory_is_begun_from_and_a_new_head_put_on(host: ForkWorkers, tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(**BERT, vocab_size=18, max_position_embeddings=64, num_labels=3)
    made = transformers.BertForSequenceClassification(config)
    made.save_pretrained(tmp_path / "base")
    spec = job({"source": "hf:small"}, learning_rate=1e-9, optimizer="sgd", max_steps=1)
    _, finished = await train(host, spec, tmp_path, Resources(directories={"small": str(tmp_path / "base")}))
    from safetensors.numpy import load_file

    tensors = load_file(finished.path)
    name = "bert.embeddings.word_embeddings.weight"
    assert np.allclose(tensors[name], made.state_dict()[name].numpy(), atol=1e-5)
    assert tensors["classifier.weight"].shape == (10, 16)
    assert read_card(Path(finished.path)).model.source == "hf:config", "whoever serves it needs no such directory"
    assert isinstance(await ask(host, finished.path, "transformers", inputs=[[1.0] * 64]), Predicted)
    other = await Member.start(host, framework="transformers")
    other.handle.send(begin(spec, plan([1.0]), 0, tmp_path / "other"))
    failed = await failure(other)
    assert (failed.code, failed.retry) == ("unavailable", True)
    assert "models.directories" in failed.fix


async def test_weights_from_a_file_and_what_they_lack(host: ForkWorkers, tmp_path: Path) -> None:
    first = job({"source": "zoo:mlp", "params": {"hidden": 8}}, "sklearn:iris", epochs=40, max_steps=None)
    _, finished = await train(host, first, tmp_path / "a")
    digest = "a" * 64
    resources = Resources(blobs={digest: finished.path})
    onward = first.model_copy(
        update={
            "model": first.model.model_copy(update={"weights": f"blob:{digest}/1"}),
            "training": first.training.model_copy(update={"max_steps": 1, "learning_rate": 1e-6}),
        }
    )
    _, more = await train(host, onward, tmp_path / "b", resources)
    assert more.metrics["accuracy"] == finished.metrics["accuracy"] > 0.8
    wine = onward.model_copy(update={"data": DataSpec(source="sklearn:wine")})
    member, _ = await train(host, wine, tmp_path / "c", resources)
    told = next(line.event for line in member.all(Log) if "afresh" in line.event)
    assert told == "not among the weights given, so begun afresh: hidden1.weight"
    cnn = onward.model_copy(update={"model": onward.model.model_copy(update={"source": "zoo:resnet18", "params": {}}),
                                    "data": DataSpec(source="sklearn:digits")})  # fmt: skip
    other = await Member.start(host)
    other.handle.send(msgspec.structs.replace(begin(cnn, plan([1.0]), 0, tmp_path / "d"), resources=resources))
    assert "No tensor of the weights given fits" in (await failure(other)).message


@pytest.mark.parametrize(
    ("model", "source", "said"),
    [
        ({"source": "hf:config", "config": BERT | {"hidden_size": 15}}, "sklearn:digit_tokens", "cannot build"),
        ({"source": "hf:config", "config": BERT | {"vocab_size": 3}}, "sklearn:digit_tokens", "has 18 tokens"),
        ({"source": "hf:config", "config": BERT}, "sklearn:iris", "text or square images"),
        ({"source": "hf:config", "config": {"model_type": "nonesuch"}}, "sklearn:digit_tokens", "nonesuch"),
        ({"source": "zoo:gpt"}, "sklearn:iris", "for language"),
    ],
)
async def test_what_cannot_be_built_is_told(host: ForkWorkers, tmp_path: Path, model, source: str, said: str) -> None:
    spec = job(model, source)
    member = await Member.start(host, framework=spec.runtime)
    member.handle.send(begin(spec, plan([1.0]), 0, tmp_path))
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("invalid_input", False)
    assert said in failed.message


async def test_a_misspelt_kind_or_factory_is_answered_with_the_nearest(host: ForkWorkers, tmp_path: Path) -> None:
    for model, said, fix in (
        ({"source": "hf:config", "config": BERT | {"model_type": "berrt"}}, "berrt", "model_type = 'bert'"),
        ({"source": "python:json:load5", "parameters": 9}, "json has no function 'load5'", "'python:json:load'"),
        (
            {"source": "python:json:load", "parameters": 9},
            "does not take these params",
            "load(input_shape=..., outputs",
        ),
    ):
        member = await Member.start(host, framework=job(model).runtime)
        order = begin(job(model), plan([1.0]), 0, tmp_path / fix[-3:-1])
        member.handle.send(msgspec.structs.replace(order, resources=Resources(packages=("json",))))
        failed = await failure(member)
        assert (failed.code, failed.retry) == ("invalid_input", False)
        assert said in failed.message
        assert fix in failed.fix


@pytest.mark.parametrize("source", ["csv:/etc/passwd", "text:/etc/hostname", "private:elsewhere", "shared:" + "a" * 64])
async def test_no_job_reads_a_file_of_the_machine_by_its_path(host: ForkWorkers, tmp_path: Path, source: str) -> None:
    shape = {"size": 1, "samples": 9, "input_shape": (2,), "outputs": 2, "task": "classification"}
    data = DataSpec(source=source, **({"shared": shape} if source.startswith("shared") else {}))
    spec = job({"source": "zoo:mlp"}).model_copy(update={"data": data})
    member = await Member.start(host)
    member.handle.send(begin(spec, plan([1.0]), 0, tmp_path))
    failed = await failure(member)
    assert failed.code == ("refused" if source.startswith(("csv", "text")) else "unavailable")


async def test_a_wrong_row_of_private_data_is_not_quoted_to_others(host: ForkWorkers, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").write_text("a,b,kind\n" + "1,2,x\n3,4,y\n" * 9 + "secret,4,x\n")
    own = DataSpec(source=f"csv:{tmp_path}/rows.csv").model_dump_json().encode()
    spec = job({"source": "zoo:mlp"}, "private:rows")
    member = await Member.start(host)
    order = begin(spec, plan([1.0]), 0, tmp_path / "work")
    member.handle.send(msgspec.structs.replace(order, resources=Resources(private={"rows": own})))
    failed = await failure(member)
    assert (failed.code, failed.retry) == ("unavailable", True), "the job is planned again, without that node"
    assert failed.message == "What is private:rows on this node cannot be read."
    told = [failed.fix, *(line.event for line in member.all(Log))]
    assert not any(word in said for word in ("secret", "rows.csv", "column") for said in told)


async def test_adapters_are_put_on_weights_that_were_saved_without_any(host: ForkWorkers, tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    _, base = await train(host, job({"source": "hf:config", "config": BERT}), tmp_path / "a")
    resources = Resources(blobs={"a" * 64: base.path})
    given = {"config": BERT, "source": "hf:config", "weights": f"blob:{'a' * 64}/1", "lora": LoraSpec(rank=2)}
    member, adapted = await train(host, job(given, max_steps=1, learning_rate=1e-9), tmp_path / "b", resources)
    before, after = load_file(base.path), load_file(adapted.path)
    query = "bert.encoder.layer.0.attention.self.query"
    same = {
        f"base_model.model.{query}.base_layer.weight": f"{query}.weight",
        "base_model.model.classifier.modules_to_save.default.weight": "classifier.weight",
    }
    for name, plain in same.items():
        assert np.allclose(after[name], before[plain], atol=1e-6), name
    assert not any("afresh" in line.event for line in member.all(Log))


async def test_keras_goes_on_from_weights(host: ForkWorkers, tmp_path: Path) -> None:
    pytest.importorskip("keras")
    first = job({"source": "zoo:mlp", "params": {"hidden": 8}}, "sklearn:iris", epochs=40, max_steps=None)
    _, finished = await train(host, first, tmp_path / "a")
    resources = Resources(blobs={"a" * 64: finished.path})
    model = first.model.model_copy(update={"weights": f"blob:{'a' * 64}/1"})
    training = first.training.model_copy(update={"max_steps": 1, "learning_rate": 1e-6})
    onward = first.model_copy(update={"model": model, "training": training, "framework": "keras"})
    _, more = await train(host, onward, tmp_path / "b", resources)
    assert more.metrics["accuracy"] == finished.metrics["accuracy"] > 0.8
    assert read_card(Path(more.path)).model.weights == ""
