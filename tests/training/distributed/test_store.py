"""What torch promises of a store holds of ours as of its own, asked by one member and by another."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta

import pytest
from torch.distributed import DistStoreError, HashStore, PrefixStore, Store

from hivenode.training.distributed.letters import MAX_VALUE, Add, Check, Delete, Pipe, Reply, Request, Set, Wait
from hivenode.training.distributed.shelf import MAX_HELD_BYTES, Shelf
from hivenode.training.distributed.store import WorkerStore

Stores = tuple[Store, Store]


class Keeper:
    """Keeps a shelf for stores in this process."""

    def __init__(self) -> None:
        self._shelf: Shelf[tuple[int, int]] = Shelf()
        self._lock = threading.Lock()
        self._pipes: list[Pipe[Request]] = []

    def store(self) -> WorkerStore:
        ours, theirs = socket.socketpair()
        pipe: Pipe[Request] = Pipe(ours, Request)
        self._pipes.append(pipe)
        threading.Thread(target=self._serve, args=(len(self._pipes) - 1, pipe), daemon=True).start()
        return WorkerStore(Pipe(theirs, Reply), timedelta(seconds=20))

    def _serve(self, member: int, pipe: Pipe[Request]) -> None:
        while (request := pipe.receive()) is not None:
            with self._lock:
                for (who, number), answer in self._shelf.ask((member, request.number), request.wish):
                    self._pipes[who].send(Reply(number, answer))

    def close(self) -> None:
        for pipe in self._pipes:
            pipe.hang_up()


@pytest.fixture(params=["ours", "torch's", "ours, with a prefix"])
def stores(request: pytest.FixtureRequest) -> Iterator[Stores]:
    if request.param == "torch's":
        own = HashStore()
        yield own, own
        return
    keeper = Keeper()
    first, second = keeper.store(), keeper.store()
    if "prefix" in request.param:
        yield PrefixStore("a", first), PrefixStore("a", second)
    else:
        yield first, second
    keeper.close()


def test_what_one_sets_the_other_gets(stores: Stores) -> None:
    one, other = stores
    one.set("key", "text")
    assert other.get("key") == b"text"
    other.set("key", b"\x00\xff")
    assert one.get("key") == b"\x00\xff"


def test_get_waits_until_it_is_there(stores: Stores) -> None:
    one, other = stores
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(other.get, "late")
        one.set("other", "1")
        one.set("late", "2")
        assert found.result(10) == b"2"


def test_waiting_in_one_thread_holds_up_no_other(stores: Stores) -> None:
    one, _ = stores
    with ThreadPoolExecutor(1) as pool:
        found = pool.submit(one.get, "late")
        one.set("late", "x")
        assert found.result(10) == b"x"


def test_sums(stores: Stores) -> None:
    one, other = stores
    assert one.add("sum", 3) == 3
    assert other.add("sum", -5) == -2
    assert int(one.get("sum")) == -2


def test_check_and_wait(stores: Stores) -> None:
    one, other = stores
    one.set("a", "1")
    assert other.check(["a"])
    assert not other.check(["a", "b"])
    one.set("b", "1")
    other.wait(["a", "b"])
    with pytest.raises(DistStoreError):
        other.wait(["c"], timedelta(milliseconds=20))


def test_timeout(stores: Stores) -> None:
    one, _ = stores
    one.set_timeout(timedelta(milliseconds=30))
    assert one.timeout == timedelta(milliseconds=30)
    with pytest.raises(DistStoreError):
        one.get("never")


def test_compare_set(stores: Stores) -> None:
    one, other = stores
    assert one.compare_set("key", "", "first") == b"first"
    assert other.compare_set("key", "wrong", "second") == b"first"
    assert other.compare_set("key", "first", "second") == b"second"
    assert one.get("key") == b"second"
    assert one.compare_set("none", "expected", "x") == b"expected"
    assert not one.check(["none"])


def test_delete_and_count(stores: Stores) -> None:
    one, other = stores
    before = one.num_keys()
    one.set("a", "1")
    one.set("b", "1")
    assert other.num_keys() == before + 2
    assert other.delete_key("a")
    assert not one.delete_key("a")
    assert one.num_keys() == before + 1


def test_many_at_once(stores: Stores) -> None:
    one, other = stores
    one.multi_set(["a", "b"], ["1", "2"])
    assert other.multi_get(["b", "a"]) == [b"2", b"1"]
    one.append("a", "0")
    assert other.get("a") == b"10"


def test_prefixes_keep_apart() -> None:
    keeper = Keeper()
    store = keeper.store()
    PrefixStore("one", store).set("key", "1")
    assert not PrefixStore("two", store).check(["key"])
    assert store.get("one/key") == b"1"
    keeper.close()


def test_a_store_without_its_keeper_says_so() -> None:
    keeper = Keeper()
    store = keeper.store()
    with ThreadPoolExecutor(1) as pool:
        waits = pool.submit(store.get, "never")
        store.set("something", "1")
        keeper.close()
        with pytest.raises(DistStoreError, match="the worker is gone"):
            waits.result(10)


def test_what_is_kept_is_bounded() -> None:
    shelf: Shelf[str] = Shelf()
    ((_, answer),) = shelf.ask("a", Set("key", bytes(MAX_VALUE + 1)))
    assert "at most" in answer.error
    ((_, answer),) = shelf.ask("a", Set("key", b"no number"))
    assert not answer.error
    ((_, answer),) = shelf.ask("a", Add("key", 1))
    assert "no number" in answer.error
    full = MAX_HELD_BYTES // MAX_VALUE
    for number in range(full):
        ((_, answer),) = shelf.ask("a", Set(str(number), bytes(MAX_VALUE)))
    assert "are kept" in answer.error, "the first key takes room too"
    shelf.ask("a", Delete("key"))
    ((_, answer),) = shelf.ask("a", Set(str(full), bytes(MAX_VALUE)))
    assert not answer.error


def test_who_waits_is_answered_once_and_with_what_was_asked() -> None:
    shelf: Shelf[str] = Shelf()
    assert shelf.ask("a", Wait(("x", "y"), values=True)) == []
    assert shelf.ask("b", Wait(("x",))) == []
    answered = dict(shelf.ask("c", Set("x", b"1")))
    assert set(answered) == {"c", "b"}
    answered = dict(shelf.ask("c", Set("y", b"2")))
    assert answered["a"].values == (b"1", b"2")
    assert [who for who, _ in shelf.ask("c", Check(("x",)))] == ["c"]
