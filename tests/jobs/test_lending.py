"""What a machine lends by its configuration, as other nodes are told of it."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from hivenode.config import Settings
from hivenode.jobs.lending import Lender
from hivenode.net.messages import Offer

SAMPLES = Path(__file__).resolve().parents[1] / "models" / "samples" / "transformers"
ROWS = "a,b,kind\n1,2,x\n2,3,y\n3,4,x\n4,5,y\n"


async def offers(lender: Lender) -> dict[str, Offer]:
    return {offer.name: offer for offer in await lender.offers(60.0)}


async def test_models_packages_and_private_data(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(ROWS)
    (tmp_path / "bad.csv").write_text(ROWS + "5,x,y\n")
    settings = Settings.model_validate(
        {
            "jobs": {"allowed_packages": ("json", "no_such_package")},
            "models": {"directories": {"bert": str(SAMPLES / "bert"), "gone": str(tmp_path / "gone")}},
            "data": {
                "private": {
                    "good": {"source": f"csv:{tmp_path}/good.csv"},
                    "bad": {"source": f"csv:{tmp_path}/bad.csv"},
                }
            },
        }
    )
    lender = Lender(settings, lambda: 2 << 30)
    assert lender.looking == ("private:good", "private:bad")
    found = await offers(lender)
    assert lender.looking == ()
    assert sorted(found) == ["hf:bert", "private:good", "python:json"]
    assert found["hf:bert"].parameters > 1000
    assert found["hf:bert"].config == b"", "only who plans a job with it is told"
    asked = {offer.name: offer for offer in await lender.offers(60.0, ("hf:bert", "hf:gone"))}
    assert json.loads(asked["hf:bert"].config)["model_type"] == "bert"
    (unfit,) = lender.unfit(("hf:bert", "hf:gone"))
    assert unfit.name == "hf:gone"
    assert unfit.reason == "There is no directory hf:gone.", "where it would be is this machine's own"
    (unfit,) = lender.unfit(("private:bad",))
    assert unfit.reason == "It cannot be read; the daemon's log there says why.", "no value, column or path of it"
    info = found["private:good"].info
    assert info is not None
    assert (info.samples, info.input_shape, info.outputs, info.labels) == (4, (2,), 2, ()), "labels are not told"
    assert lender.resources.packages == ("json", "no_such_package")

    before = found["private:good"].same
    (tmp_path / "good.csv").write_text(ROWS + "5,6,z\n")
    (tmp_path / "bad.csv").write_text(ROWS)
    found = await offers(lender)
    assert found["private:good"].same != before, "another class: no longer the same kind of data"
    assert found["private:bad"].same == before
    assert lender.unfit(("private:bad",)) == ()
    await lender.close()


async def test_what_the_system_does_not_let_it_look_at_does_not_hide_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Root may enter any folder: there the refusal is made, as that of a folder without the right to enter it."""
    (tmp_path / "good.csv").write_text(ROWS)
    locked, long = tmp_path / "locked", tmp_path / ("a" * 300)
    stat = Path.stat

    def refused(path: Path, *, follow_symlinks: bool = True) -> os.stat_result:
        if locked in path.parents:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return stat(path, follow_symlinks=follow_symlinks)

    monkeypatch.setattr(Path, "stat", refused)
    settings = Settings.model_validate(
        {
            "models": {
                "directories": {"locked": str(locked / "bert"), "long": str(long), "bert": str(SAMPLES / "bert")}
            },
            "data": {"private": {"good": {"source": f"csv:{tmp_path}/good.csv"}}},
        }
    )
    lender = Lender(settings, lambda: 2 << 30)
    assert sorted(await offers(lender)) == ["hf:bert", "private:good"]
    assert [unfit.reason.rpartition(": ")[2] for unfit in lender.unfit(("hf:locked", "hf:long"))] == [
        "Permission denied.",
        "File name too long.",
    ]
    assert "/" not in "".join(unfit.reason + unfit.fix for unfit in lender.unfit(("hf:locked", "hf:long")))
    monkeypatch.undo()
    locked.mkdir()
    (locked / "bert").symlink_to(SAMPLES / "bert")
    assert sorted(await offers(lender)) == ["hf:bert", "hf:locked", "private:good"]
    await lender.close()
