"""Which configurations of Keras are taken, what they cost, and what the others are told."""

from __future__ import annotations

import contextlib
import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from hivenode.cli.jobs import located
from hivenode.data.info import DataInfo
from hivenode.errors import HiveError, InvalidInput
from hivenode.models.declared import describe
from hivenode.models.keras_configs.allowed import examined
from hivenode.models.keras_configs.files import embedded, read
from hivenode.models.keras_configs.graph import fitted
from hivenode.spec.job import parse_job, read_job
from hivenode.spec.model import ModelSpec
from hivenode.spec.values import Strategy

ROOT = Path(__file__).resolve().parents[2]
SAMPLES = Path(__file__).parent / "samples" / "graphs"
READY = ROOT / "configs" / "jobs" / "keras_config.json"
DIGITS = DataInfo("digits", 100, (1, 8, 8), 10, tuple("0123456789"), "classification")
TEXT = DataInfo("text", 100, (7,), 3, ("a", "b", "c"), "classification", vocabulary=11)

Config = dict[str, Any]


def layer(kind: str, **config: object) -> Config:
    return {"class_name": kind, "config": config}


def sequential(*layers: Config) -> Config:
    return {"class_name": "Sequential", "config": {"layers": list(layers)}}


def ready() -> Config:
    config = read(READY)
    assert isinstance(config, dict)
    return config


def changed(number: int, **config: object) -> Config:
    """The ready model with one layer changed."""
    made = copy.deepcopy(ready())
    made["config"]["layers"][number]["config"].update(config)
    return made


def test_the_ready_model_is_described_and_shortened() -> None:
    config = examined(ready())
    assert examined(config) == config
    assert len(json.dumps(config)) < len(READY.read_text())
    cost = describe(ModelSpec(source="keras:config", config=config), DIGITS)
    assert cost.parameters == (9 * 12 + 12) + (9 * 12 * 12 + 12) + (192 * 10 + 10)
    assert cost.flops_per_sample == 2 * 64 * 9 * 12 + 2 * 64 * 9 * 12 * 12 + 2 * 192 * 10
    assert [line.name for line in cost.layers] == ["stem", "conv", "add", "pool", "flatten", "dropout", "classes"]
    assert cost.layers[3].output == (4, 4, 12)


@pytest.mark.parametrize("name", ["picture.keras", "picture.h5", "words.keras", "regressor.keras"])
def test_files_that_keras_saved_are_read(name: str) -> None:
    model = embedded(ModelSpec(source=f"keras:{SAMPLES / name}"))
    assert model.source == "keras:config"
    assert examined(model.config) == model.config
    assert examined(read(SAMPLES / name)) == model.config


REFUSED = [
    (sequential(layer("Lambda", name="sly")), "Layer sly .* is a Lambda: .*Python code"),
    (sequential(layer("Denze", units=3)), "Layer layer0 .* is a Denze"),
    (sequential({**layer("Dense", name="d", units=3), "module": "os"}), "Layer d .* is of module os"),
    (sequential({**layer("Dense", name="d", units=3), "module": "keras_evil.layers"}), "Layer d .* is of module"),
    (sequential({**layer("Dense", name="d", units=3), "registered_name": "Mine>Dense"}), "registered as Mine>Dense"),
    ({"class_name": "MyModel", "module": "mine", "config": {"layers": []}}, "is of a MyModel, which is code"),
    (sequential(layer("Dense", name="wide", units=10**12)), f"Layer wide .* has units = {10**12}"),
    (sequential(layer("Dense", name="d", units=3, activation="evil")), "Layer d .* has the activation 'evil'"),
    (
        sequential(layer("Dense", name="d", units=3, activation={"class_name": "__lambda__", "config": {}})),
        "Layer d .* has an object .__lambda__. as activation",
    ),
    (
        sequential(layer("Dense", name="d", units=3, kernel_initializer={"class_name": "Mine", "config": {}})),
        "Layer d .* has the kernel_initializer Mine",
    ),
    (sequential(layer("Dense", name="d", units=3, kernel_constraint={"class_name": "MaxNorm"})), "kernel_constraint"),
    (sequential(layer("Dense", name="d", units={"class_name": "__lambda__"})), "Layer d .* has a units that is no"),
    (sequential(layer("Conv2D", name="c", data_format="channels_first")), "Layer c .* data_format = channels_first"),
    (sequential(layer("LSTM", name="l", units=3, stateful=True)), "Layer l .* stateful"),
    (sequential(layer("Dense", name="d", dtype="float64", units=3)), "Layer d .* compute in float64"),
    (sequential(layer("TimeDistributed", name="t", layer=layer("Lambda", name="sly"))), "Layer sly .* is a Lambda"),
    (sequential(sequential(layer("Lambda", name="sly"))), "Layer sly .* is a Lambda"),
    (sequential(*[layer("Flatten")] * 513), "more than 512 layers"),
    (sequential(layer("Flatten", name="f"), layer("Dense", name="f", units=1)), "Layer f .* is there twice"),
    (sequential(layer("Flatten", name="../x")), "has a name that cannot be used"),
    (sequential(), "has no list of layers"),
    ({"layers": []}, "no class_name and config"),
]


@pytest.mark.parametrize(("config", "said"), REFUSED, ids=[said[:40] for _, said in REFUSED])
def test_what_is_not_taken_is_named(config: Config, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        examined(config)
    assert caught.value.fix


def test_models_within_each_other_end_somewhere() -> None:
    config = sequential(layer("Dense", units=1))
    for _ in range(50):
        config = sequential(config)
    with pytest.raises(InvalidInput, match="models or wrappers deep"):
        examined(config)


FLAT = layer("InputLayer", name="pixels", batch_shape=[None, 64])
DENSE = layer("Dense", name="d", units=10)
UNFIT = [
    (changed(0, batch_shape=[None, 28, 28, 1]), DIGITS, "takes 28x28x1; a sample of digits is 8x8x1"),
    (changed(7, units=9), DIGITS, "puts out 9; digits needs 10"),
    (changed(7, activation="sigmoid"), DIGITS, "Layer classes .* ends the model with sigmoid"),
    (changed(2, filters=7), DIGITS, r"Layer add .* \(Add\) cannot take 8x8x12 and 8x8x7"),
    (sequential(FLAT, layer("Conv2D", name="c", filters=3, kernel_size=[3, 3]), DENSE), DIGITS, "Layer c .* take 64"),
    (sequential(FLAT, layer("Dense", name="d", units=0)), DIGITS, "Layer d .* cannot take 64"),
    (
        sequential(layer("Embedding", name="e", input_dim=9, output_dim=3), layer("Flatten"), DENSE),
        TEXT,
        "Layer e .* has 9 entries; text has 11 tokens",
    ),
    (sequential(DENSE), TEXT, "Layer d .* is a Dense, and text is text"),
    (sequential(layer("Embedding", name="e", input_dim=9, output_dim=3)), DIGITS, "Layer e .* is a Embedding, and"),
    (
        sequential(FLAT, layer("Dense", name="a", units=2**20), layer("Dense", name="b", units=2**20), layer("Dense")),
        DIGITS,
        "Layer layer3 .* cannot take",
    ),
    (sequential(FLAT, *[layer("Dense", units=2**20)] * 3, DENSE), DIGITS, "has 1,099,512,676,352 parameters"),
]


@pytest.mark.parametrize(("config", "info", "said"), UNFIT, ids=[said[:40] for *_, said in UNFIT])
def test_what_does_not_fit_is_named(config: Config, info: DataInfo, said: str) -> None:
    with pytest.raises(InvalidInput, match=said) as caught:
        describe(ModelSpec(source="keras:config", config=config), info)
    assert caught.value.fix


def test_layers_in_a_circle_are_refused() -> None:
    config = ready()
    layers = config["config"]["layers"]
    layers[1]["inbound_nodes"][0]["args"][0]["config"]["keras_history"][0] = "conv"
    with pytest.raises(InvalidInput, match=r"Layer stem .* takes what no layer before it gives"):
        fitted(config, DIGITS)


@pytest.mark.parametrize("shape", [(8, 8, 1), (8, 8), (None, None, 1), (64,)])
def test_a_sample_may_be_taken_as_it_is_or_flat(shape: tuple[int | None, ...]) -> None:
    entered = layer("InputLayer", name="x", batch_shape=[None, *shape])
    fit = fitted(sequential(entered, layer("Flatten"), DENSE), DIGITS)
    assert fit.takes == tuple(size or 8 for size in shape)


def places(value: Any) -> list[tuple[Any, Any]]:
    """Each value within: what holds it, and under which key."""
    found = []
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        found += [(value, key), *places(inner)]
    return found


JUNK = [
    None, True, -1, 0, 2**40, 1e300, "", "x" * 300, [], {}, [[]], {"class_name": "Lambda"}, {"config": 3}, [None] * 9,
]  # fmt: skip


@pytest.mark.parametrize("seed", range(4))
def test_whatever_stands_in_a_configuration_it_is_taken_or_refused(seed: int) -> None:
    rng = random.Random(seed)
    for _ in range(250):
        config = ready() if rng.random() < 0.5 else copy.deepcopy(examined(read(SAMPLES / "words.keras")))
        for _ in range(rng.randrange(1, 3)):
            holder, key = rng.choice(places(config))
            if isinstance(holder, dict) and rng.random() < 0.3:
                del holder[key]
            else:
                holder[key] = rng.choice(JUNK)
        with contextlib.suppress(InvalidInput):
            describe(ModelSpec(source="keras:config", config=config or {"a": 1}), rng.choice((DIGITS, TEXT)))


def test_files_that_are_no_configuration(tmp_path: Path) -> None:
    broken = tmp_path / "model.json"
    for text in ("not JSON", "[1, 2]", '{"class_name": ' + "[" * 5000, ""):
        broken.write_text(text)
        with pytest.raises(InvalidInput, match=r"model\.json (is no sound JSON|holds no JSON object)"):
            embedded(ModelSpec(source=f"keras:{broken}"))
    with pytest.raises(HiveError, match="There is no file"):
        embedded(ModelSpec(source=f"keras:{tmp_path / 'none.keras'}"))
    with pytest.raises(InvalidInput, match="has weights and no configuration"):
        embedded(ModelSpec(source=f"keras:{SAMPLES / 'picture.weights.h5'}"))
    for name in ("lambda.keras", "lambda.h5"):
        with pytest.raises(InvalidInput, match="is a Lambda"):
            embedded(ModelSpec(source=f"keras:{SAMPLES / name}"))


def test_such_a_job_is_of_keras_and_planned_without_stages() -> None:
    from hivenode.jobs.proposals import describe as priced

    path = ROOT / "configs" / "jobs" / "keras_config.toml"
    job = located(read_job(path), path.parent)
    assert (job.framework, job.runtime) == ("keras", "keras")
    work = priced(job.model_copy(update={"model": embedded(job.model)}))
    assert work.framework == "keras"
    assert "not cut into stages" in work.masked[Strategy.pipeline_parallel]
    assert "not cut into stages" in work.masked[Strategy.model_parallel]
    with pytest.raises(InvalidInput, match="built by keras alone"):
        parse_job({"name": "x", "framework": "torch", "model": {"source": "keras:a.json"}})
    with pytest.raises(InvalidInput, match="all that a keras: model is made of"):
        parse_job({"name": "x", "model": {"source": "keras:a.json", "params": {"width": 3}}})


def test_keras_is_not_imported_for_any_of_it() -> None:
    code = (
        "import sys; from pathlib import Path; from hivenode.models.keras_configs.files import embedded; "
        "from hivenode.spec.model import ModelSpec; from hivenode.models.declared import describe; "
        f"embedded(ModelSpec(source='keras:{READY}')); print({{'keras', 'tensorflow', 'torch'}} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
