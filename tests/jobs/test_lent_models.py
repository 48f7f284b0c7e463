"""Models that only some nodes have: planned by what these say of them, which nobody vouches for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import msgspec
import pytest

from hivenode.errors import HiveError, InvalidInput, Unavailable
from hivenode.jobs.proposals import Proposer
from hivenode.net.messages import CONFIG_BYTES, Offer, ProfileReply, ProfileRequest, Request, Response, Unfit
from hivenode.planning.qtable import Experience
from hivenode.spec.job import parse_job
from hivenode.spec.values import Plan, Strategy

BERT = {
    "model_type": "bert", "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "vocab_size": 30_522, "max_position_embeddings": 512,
}  # fmt: skip
VERSIONS = {"torch": "2.13.0", "scikit-learn": "1.7.0", "transformers": "5.23.0"}


def offer(config: Mapping[str, Any] | bytes = BERT, same: str = "a") -> Offer:
    told = config if isinstance(config, bytes) else json.dumps(config).encode()
    return Offer("hf:base", same=same, parameters=110_000_000, config=told)


async def planned(having: Mapping[str, Offer | Unfit | None], **placement: Any) -> Plan:
    async def call(node: str, request: Request, seconds: float) -> Response:
        assert isinstance(request, ProfileRequest)
        assert request.about == ("hf:base",)
        has = having[node]
        return ProfileReply(
            1e11, 1 << 33, 2, 1e9, ("torch", "transformers"), 0, versions=VERSIONS,
            offers=(has,) if isinstance(has, Offer) else (), unfit=(has,) if isinstance(has, Unfit) else (),
        )  # fmt: skip

    proposer = Proposer(
        me="ash", call=call, workers=lambda: tuple(having), name=str, latency=lambda node: 0.001,
        experience=Experience(),
        reading_seconds=60.0,
    )  # fmt: skip
    job = {
        "name": "bert", "model": {"source": "hf:base"}, "data": {"source": "sklearn:digit_tokens"},
        "placement": placement,
    }  # fmt: skip
    return await proposer.propose(parse_job(job), salt="")


async def test_it_is_cut_over_the_nodes_that_have_it() -> None:
    plan = await planned({"ash": None, "birch": offer(), "cedar": offer()}, strategy="pipeline_parallel")
    assert {share.node for share in plan.shares} == {"birch", "cedar"}
    (first, end), (start, last) = (share.layer_range or (0, 0) for share in plan.shares)
    assert (first, end, last) == (0, start, 14), "embeddings, twelve blocks, a head"


async def test_different_models_by_one_name_are_an_error_that_names_the_nodes() -> None:
    nodes = {"ash": offer(), "birch": offer(same="b"), "cedar": offer()}
    with pytest.raises(Unavailable, match=r"not the same model on all nodes: ash, cedar have one, birch another"):
        await planned(nodes)
    plan = await planned(nodes, nodes=["ash", "cedar"], strategy="model_parallel")
    assert {share.node for share in plan.shares} == {"ash", "cedar"}


async def test_what_is_wrong_with_it_is_told_by_the_plan() -> None:
    damaged = Unfit("hf:base", "model.safetensors is cut short.", "Fetch it again.")
    with pytest.raises(Unavailable, match=r"birch: model.safetensors is cut short\. Fetch it again"):
        await planned({"ash": None, "birch": damaged})
    with pytest.raises(Unavailable, match=r"birch cannot use its hf:base \(model.safetensors is cut short\)"):
        await planned({"ash": offer(), "birch": damaged}, strategy="model_parallel")
    assert (await planned({"ash": offer(), "birch": damaged})).strategy is Strategy.single_node


@pytest.mark.parametrize("config", [b"", json.dumps({"model_type": "electra"}).encode(), b'{"model_type": ["bert"]}'])
async def test_what_cannot_be_looked_into_is_not_cut(config: bytes) -> None:
    nodes = {"ash": offer(config), "birch": offer(config)}
    assert (await planned(nodes)).strategy in (Strategy.single_node, Strategy.data_parallel)
    with pytest.raises(HiveError, match="the layers of hf:base are not known"):
        await planned(nodes, strategy="pipeline_parallel")


@pytest.mark.parametrize(
    "config",
    [
        b"\xff\xfe", b"[1]", b'{"a":' * 3000, b"\x80\x04.",
        BERT | {"num_hidden_layers": 10**12}, BERT | {"hidden_size": 10**400}, BERT | {"hidden_size": -1},
        BERT | {"vocab_size": 3}, BERT | {"auto_map": {"AutoModel": "own.Model"}},
        {**BERT, "model_type": "llama", "head_dim": [0] * 1000}, {**BERT, "model_type": "gpt2", "n_inner": "9" * 1000},
    ],
)  # fmt: skip
async def test_a_configuration_that_makes_no_sense_is_refused(config: dict[str, Any] | bytes) -> None:
    with pytest.raises(InvalidInput):
        await planned({"ash": offer(config)})


async def test_a_name_that_nobody_could_offer_is_asked_of_nobody() -> None:
    async def call(node: str, request: Request, seconds: float) -> Response:
        msgspec.msgpack.decode(msgspec.msgpack.encode(request), type=ProfileRequest)
        return ProfileReply(1e11, 1 << 33, 2, 1e9, ("torch",), 0)

    proposer = Proposer(
        me="ash",
        call=call,
        workers=lambda: ("ash",),
        name=str,
        latency=lambda node: 0.001,
        experience=Experience(),
        reading_seconds=0.0,
    )
    job = {"name": "bert", "model": {"source": "hf:" + "b" * 190}, "data": {"source": "sklearn:digit_tokens"}}
    with pytest.raises(Unavailable, match="No node that answers has hf:bbb"):
        await proposer.propose(parse_job(job), salt="")


def test_a_configuration_that_is_too_large_is_not_decoded() -> None:
    reply = ProfileReply(1.0, 1, 1, 1.0, (), 0, offers=(offer(b" " * (CONFIG_BYTES + 1)),))
    with pytest.raises(msgspec.ValidationError):
        msgspec.msgpack.decode(msgspec.msgpack.encode(reply), type=ProfileReply)
