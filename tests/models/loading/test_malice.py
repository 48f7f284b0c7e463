"""No pickle made to run something is loaded, in whatever container, and none has any effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from hivenode.errors import HiveError
from hivenode.models.loading import load, stream
from tests.models.identify.pickle_payloads import CONTAINERS, armed, inert

ARMED = sorted(armed(Path("mark")))


@pytest.mark.parametrize("container", [*sorted(CONTAINERS), "pickle", "joblib"])
@pytest.mark.parametrize("name", ARMED)
def test_an_armed_pickle_is_not_loaded_and_does_nothing(name: str, container: str, tmp_path: Path) -> None:
    mark = tmp_path / "mark"
    payload = armed(mark)[name]
    if container in CONTAINERS:
        path = CONTAINERS[container](tmp_path, payload)
    else:
        path = tmp_path / f"m.{container}"
        path.write_bytes(payload)
    with pytest.raises(HiveError) as refused:
        load(path)
    assert refused.value.fix
    with pytest.raises(HiveError):
        next(stream(path))
    assert not mark.exists()


@pytest.mark.parametrize("name", sorted(inert()))
def test_what_a_foreign_package_would_do_is_not_loaded(name: str, tmp_path: Path) -> None:
    path = tmp_path / "m.pkl"
    path.write_bytes(inert()[name])
    with pytest.raises(HiveError):
        load(path)


def test_the_refusal_names_what_stands_in_the_way(tmp_path: Path) -> None:
    path = CONTAINERS["torch_zip"](tmp_path, b"\x80\x02}cos\nsystem\n(S'true'\ntR0.")
    with pytest.raises(HiveError, match=r"os\.system, model/data\.pkl at byte 3") as refused:
        load(path)
    assert f"hivenode convert {path}" in refused.value.fix
