"""Codecs: what is lost is bounded and made up for, and no bytes are believed that no encoder has written."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hivenode.training.exchange.codecs import BLOCK, CODECS, Choice, Codec, Feedback, Speed, choose, measure

LENGTHS = [1, 2, 3, 255, 256, 257, 4095, 4096, 4097, 65536, 70001]
BOUND = {"fp32": 0.0, "fp16": 2**-11, "bf16": 2**-8, "int8": 0.5 / 127, "int4": 0.5 / 7}
"""Largest error over the largest magnitude."""


def through(codec: Codec, values: np.ndarray) -> np.ndarray:
    data = np.empty(codec.encoded_size(values.size), np.uint8)
    codec.encode(values, data)
    out = np.full(values.size, np.nan, np.float32)
    codec.decode(data, out)
    return out


def sample(count: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.standard_normal(count, np.float32) * np.float32(10.0 ** rng.integers(-4, 4))


@pytest.mark.parametrize("name", BOUND)
@pytest.mark.parametrize("count", LENGTHS)
def test_the_error_is_within_its_bound(name: str, count: int) -> None:
    codec = CODECS[name]
    for seed in range(3):
        values = sample(count, seed)
        back = through(codec, values)
        assert np.abs(back - values).max() <= BOUND[name] * 1.0001 * np.abs(values).max()


@settings(deadline=None, derandomize=True, database=None, max_examples=60)
@given(
    st.sampled_from(list(CODECS)),
    st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=40),
)
def test_whatever_is_finite_stays_finite_and_keeps_its_sign(name: str, given_values: list[float]) -> None:
    values = np.array(given_values, np.float32)
    back = through(CODECS[name], values)
    assert np.isfinite(back).all()
    assert (back * np.sign(values) >= 0).all()


@pytest.mark.parametrize("count", LENGTHS)
def test_top_k_keeps_the_largest_of_each_chunk(count: int) -> None:
    values = np.random.default_rng(count).permutation(count).astype(np.float32) - count / 2
    back = through(CODECS["topk"], values)
    for start in range(0, count, 4096):
        chunk, kept = values[start : start + 4096], back[start : start + 4096]
        dropped = np.abs(chunk[kept == 0])
        assert np.count_nonzero(kept) >= (len(chunk) * 128 // 4096 - 1)
        if len(dropped):
            assert dropped.max() <= np.abs(chunk[kept != 0]).min()
        assert np.abs(kept - chunk)[kept != 0].max() <= np.abs(chunk).max() / 127


@pytest.mark.parametrize("name", CODECS)
def test_the_same_bytes_are_the_same_bits_wherever_they_lie(name: str) -> None:
    codec, values = CODECS[name], sample(10_001)
    data = np.empty(codec.encoded_size(values.size), np.uint8)
    codec.encode(values, data)
    shifted = np.empty(data.size + 1, np.uint8)
    shifted[1:] = data
    first, second = np.empty_like(values), np.empty_like(values)
    codec.decode(data, first)
    codec.decode(shifted[1:], second)
    assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize("name", CODECS)
def test_pieces_of_whole_blocks_are_the_bytes_of_the_whole(name: str) -> None:
    codec, values = CODECS[name], sample(5 * BLOCK + 77)
    whole = np.empty(codec.encoded_size(values.size), np.uint8)
    codec.encode(values, whole)
    parts = []
    for start, stop in ((0, BLOCK), (BLOCK, 4 * BLOCK), (4 * BLOCK, values.size)):
        part = np.empty(codec.encoded_size(stop - start), np.uint8)
        codec.encode(values[start:stop], part)
        parts.append(part)
    assert np.concatenate(parts).tobytes() == whole.tobytes()
    assert codec.encoded_size(BLOCK) <= 4 * BLOCK


@pytest.mark.parametrize("name", [name for name in CODECS if name != "fp32"])
def test_with_feedback_the_sum_of_what_arrives_follows_what_was_meant(name: str) -> None:
    codec, rng = CODECS[name], np.random.default_rng(3)
    feedback = Feedback(5000)
    meant, arrived = np.zeros(5000), np.zeros(5000)
    data, said = np.empty(codec.encoded_size(5000), np.uint8), np.empty(5000, np.float32)
    largest = 0.0
    for number in range(400):
        gradient = rng.standard_normal(5000, np.float32)
        meant += gradient
        if number % 7 == 3:  # a round that comes to nothing is given again
            feedback.add(codec, gradient.copy())
            feedback.revoke()
        feedback.add(codec, gradient)
        codec.encode(gradient, data)  # as the exchange does it
        codec.decode(data, said)
        feedback.commit()
        arrived += said
        largest = max(largest, float(np.abs(feedback.residual).max()))
    # What is missing is the debt, no more; and the debt has not grown with the rounds.
    assert np.allclose(meant - arrived, feedback.residual, atol=1e-2)
    assert largest < (250 if name == "topk" else 2)


@pytest.mark.parametrize("name", CODECS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_not_hidden(name: str, bad: float) -> None:
    values = sample(5000)
    values[4500] = bad
    back = through(CODECS[name], values)
    assert np.isfinite(back[:4096]).all()
    assert not np.isfinite(back[4096:]).all()


@settings(deadline=None, derandomize=True, database=None, max_examples=200)
@given(st.sampled_from(list(CODECS)), st.integers(1, 9000), st.randoms(use_true_random=False))
def test_hostile_bytes_harm_nothing(name: str, count: int, random: object) -> None:
    codec = CODECS[name]
    data = np.frombuffer(random.randbytes(codec.encoded_size(count)), np.uint8)  # type: ignore[attr-defined]
    around = np.full(count + 2, 7.0, np.float32)
    codec.decode(data, around[1:-1])
    assert around[0] == around[-1] == 7.0


@pytest.mark.parametrize("name", ["int8", "int4", "topk"])
@pytest.mark.parametrize("scale", [np.nan, np.inf, -1.0, 3e38])
def test_a_scale_that_no_block_has_decodes_to_nan(name: str, scale: float) -> None:
    codec, values = CODECS[name], sample(300)
    data = np.empty(codec.encoded_size(300), np.uint8)
    codec.encode(values, data)
    data[:4] = np.array([scale], np.float32).view(np.uint8)
    out = np.empty(300, np.float32)
    codec.decode(data, out)
    assert np.isnan(out).any()


@pytest.mark.parametrize("place", [0, 300, 65535])
def test_places_outside_of_their_block_or_out_of_order_decode_to_nan(place: int) -> None:
    codec = CODECS["topk"]
    data = np.empty(codec.encoded_size(300), np.uint8)
    codec.encode(sample(300), data)
    data[4 + 18 : 4 + 20] = np.array([place], "<u2").view(np.uint8)
    out = np.empty(300, np.float32)
    codec.decode(data, out)
    assert np.isnan(out).any()


FAST = {name: Speed(1e9, 1e9) for name in CODECS}


@pytest.mark.parametrize(("bandwidth", "chosen"), [(10e9, "fp32"), (12.5e6, "int8"), (200e6, "int8"), (1.5e9, "fp32")])
def test_the_codec_follows_from_link_and_speed(bandwidth: float, chosen: str) -> None:
    choice = choose(10_000_000, bandwidth, FAST, ("fp32", "fp16", "int8"))
    assert choice.codec == chosen
    assert f"as {chosen}" in choice.reason


def test_a_slow_codec_is_left_alone_and_the_reason_says_so() -> None:
    speeds = {"fp16": Speed(1e9, 1e9), "int8": Speed(1e6, 1e6)}
    choice = choose(1_000_000, 12.5e6, speeds, ("fp32", "fp16", "int8"))
    assert choice.codec == "fp16"
    alone = choose(1_000_000, 12.5e6, {}, ("fp32",))
    assert alone == Choice("fp32", 0.64, "4 MB over 100 Mbit/s take 0.64 s as fp32; no other codec is allowed")


def test_what_an_exchange_takes_in_any_case_is_no_reason_to_send_less() -> None:
    assert choose(1000, 12.5e6, FAST, ("fp32", "int8", "int4")).codec == "int4"
    assert choose(1000, 12.5e6, FAST, ("fp32", "int8", "int4"), 0.01).codec == "fp32"
    assert choose(10_000_000, 12.5e6, FAST, ("fp32", "int8", "int4"), 0.01).codec == "int4"


def test_a_speed_is_measured() -> None:
    speed = measure(CODECS["int8"], 1 << 14)
    assert speed.encode > 0
    assert speed.decode > 0
