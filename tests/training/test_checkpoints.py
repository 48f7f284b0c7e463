"""Checkpoints and model files: everything comes back, equal states are equal bytes, wrong files are refused."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from hivenode.data.info import DataInfo
from hivenode.data.normalisation import Normalisation
from hivenode.errors import Corrupted, InvalidInput
from hivenode.models.card import ModelCard
from hivenode.models.declared import layers_of
from hivenode.models.layers import tensors as declared_tensors
from hivenode.net.local import Resources
from hivenode.spec.job import JobSpec, ModelSpec, PlacementSpec, TrainingSpec
from hivenode.training import checkpoints, modelfile, tensorfiles
from hivenode.training.checkpoints import State, Writer
from hivenode.training.frameworks.making import make
from hivenode.training.frameworks.model import Layout, Model, initial_weights

SPEC = JobSpec(name="one", model=ModelSpec(source="zoo:mlp"), training=TrainingSpec(optimizer="adam"))
INFO = DataInfo("sklearn:digits", 1797, (1, 8, 8), 10, tuple("0123456789"), "classification")
TENSORS = declared_tensors(layers_of(ModelSpec(source="zoo:mlp"), INFO) or ())
LAYOUT = Layout({name: tensor.shape for name, tensor in TENSORS.items()}, {"norm.running_mean": (3,)})
LIMIT = 10_000_000


def state(step: int = 7) -> State:
    weights = initial_weights(TENSORS, 3)
    running = np.array([1, 2, 3], np.float32)
    return State(step, weights, running, {"mean": weights * 2, "square": weights * 3}, {"power1": (0.9**7).hex()})


def test_a_state_comes_back_to_the_bit_and_equal_states_are_equal_bytes(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    checkpoints.write(first, state(), SPEC, LAYOUT)
    renamed = SPEC.model_copy(update={"name": "two", "placement": PlacementSpec(max_nodes=3)})
    checkpoints.write(second, state().copy(), renamed, LAYOUT)
    assert first.read_bytes() == second.read_bytes()
    back = checkpoints.read(first, renamed, LAYOUT, LIMIT)
    assert back.step == 7
    assert back.weights.tobytes() == state().weights.tobytes()
    assert back.buffers.tolist() == [1, 2, 3]
    assert {name: slot.tobytes() for name, slot in back.slots.items()} == {
        name: slot.tobytes() for name, slot in state().slots.items()
    }
    assert dict(back.scalars) == dict(state().scalars)
    back.weights[0] = 1.0  # training goes on in it


def test_another_course_of_training_does_not_continue_it(tmp_path: Path) -> None:
    checkpoints.write(tmp_path / "a", state(), SPEC, LAYOUT)
    for change in ({"training": TrainingSpec(optimizer="sgd")}, {"model": ModelSpec(source="zoo:logistic")}):
        with pytest.raises(InvalidInput):
            checkpoints.read(tmp_path / "a", SPEC.model_copy(update=change), LAYOUT, LIMIT)


def test_what_is_not_a_checkpoint_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "a"
    with pytest.raises(Corrupted):
        checkpoints.read(path, SPEC, LAYOUT, LIMIT)
    tensorfiles.save(path, {}, {"format": checkpoints.FORMAT, "spec": checkpoints.spec_digest(SPEC), "step": "1"})
    with pytest.raises(Corrupted):
        checkpoints.read(path, SPEC, LAYOUT, LIMIT)
    modelfile.write(path, card(), model())
    with pytest.raises(Corrupted):
        checkpoints.read(path, SPEC, LAYOUT, LIMIT)


def model(seed: int = 3) -> Model:
    return make("torch", ModelSpec(source="zoo:mlp"), INFO, seed, Resources(), 1).model


def card(**changes: object) -> ModelCard:
    values = {
        "framework": "torch",
        "model": ModelSpec(source="zoo:mlp"),
        "info": INFO,
        "normalisation": Normalisation((0.1, 1 / 3) * 32, (1e-300, 2.0) * 32),
        "accuracy": 0.1 + 0.2,
    }
    return ModelCard(**(values | changes))  # type: ignore[arg-type]


def test_a_model_file_says_all_that_is_needed_to_use_it(tmp_path: Path) -> None:
    path = tmp_path / "m"
    modelfile.write(path, card(), model())
    assert modelfile.read(path, LIMIT)[0] == card()
    other = model(seed=4)
    modelfile.fill(path, other, modelfile.read(path, LIMIT)[1])
    assert other.weights.tobytes() == model().weights.tobytes()
    with pytest.raises(Corrupted, match="not those of its architecture"):
        modelfile.fill(path, other, {})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("format", "other"),
        ("model", '{"source":"zoo:"}'),
        ("model", "x"),
        ("data", "{}"),
        ("data", '{"source":"a","samples":1,"input_shape":[64],"outputs":2,"labels":["a"],"task":"classification"}'),
        ("tokenizer", "{}"),
        ("targets", '{"mean":[0.0],"scale":[0.0]}'),
        ("normalisation", '{"mean":[0.0],"scale":[1.0]}'),
        ("accuracy", '"good"'),
    ],
)
def test_a_model_file_that_contradicts_itself_is_refused(tmp_path: Path, key: str, value: str) -> None:
    path = tmp_path / "m"
    modelfile.write(path, card(), model())
    tensors, metadata = tensorfiles.load(path, LIMIT)
    tensorfiles.save(path, tensors, metadata | {key: value})
    with pytest.raises(Corrupted):
        modelfile.read(path, LIMIT)


def test_initial_weights_are_fixed_for_good() -> None:
    weights = initial_weights(TENSORS, 0)
    assert weights.tobytes() == initial_weights(TENSORS, 0).tobytes() != initial_weights(TENSORS, 1).tobytes()
    hidden = weights[: 64 * 64]
    assert abs(float(hidden.mean())) < 0.01
    assert abs(float(hidden.var()) * 64 / 2 - 1) < 0.1  # variance 2 / fan-in
    assert not weights[64 * 64 : 64 * 64 + 64].any()


def test_the_writer_takes_what_was_submitted_not_what_became_of_it_and_leaves_out_what_comes_meanwhile() -> None:
    entered, go_on, refused_one = threading.Event(), threading.Event(), threading.Event()
    written: list[tuple[int, float]] = []
    refused: list[tuple[int, str]] = []

    def write(one: State) -> None:
        entered.set()
        go_on.wait()
        if one.step == 3:
            raise OSError(28, "No space left on device")
        written.append((one.step, float(one.weights[0])))

    def failed(one: State, reason: str) -> None:
        refused.append((one.step, reason))
        refused_one.set()

    writer = Writer(write, failed)
    live = state(1)
    first = float(live.weights[0])
    writer.submit(live)
    entered.wait()
    live.weights[:] = 5.0
    writer.submit(State(2, live.weights, live.buffers, live.slots, live.scalars))
    go_on.set()
    writer.submit(State(3, live.weights, live.buffers, live.slots, live.scalars), last=True)
    refused_one.wait()
    writer.submit(State(4, live.weights, live.buffers, live.slots, live.scalars), last=True)
    writer.close()
    assert written == [(1, first), (4, 5.0)]
    assert refused == [(3, "No space left on device")]
