"""Workers know each other by id; people read names."""

from __future__ import annotations

from hivenode.jobs.naming import Names

ASH, OAK, TWIN = "a" * 32, "b" * 32, "c" * 32
NAMES = {ASH: "ash", OAK: "oak", TWIN: "oak"}


def test_ids_in_a_sentence_become_names() -> None:
    names = Names([ASH, OAK], NAMES.__getitem__)
    said = names.within(f"Worker {ASH} contributed values that are not finite; {OAK} and {'d' * 32} go on.")
    assert said == f"Worker ash contributed values that are not finite; oak and {'d' * 32} go on."
    assert names.listed([OAK, ASH]) == "oak, ash"


def test_nodes_of_one_name_are_told_apart() -> None:
    names = Names(NAMES, NAMES.__getitem__)
    assert names.within(f"{TWIN} is lost") == "oak (cccccccc) is lost"
    assert names.listed([ASH, OAK]) == "ash, oak (bbbbbbbb)"
