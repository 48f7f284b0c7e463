from __future__ import annotations

from collections.abc import AsyncIterator

import pytest

from tests.network.lan import Lan, unusable


@pytest.fixture(scope="session")
def _usable() -> None:
    if reason := unusable():
        pytest.skip(reason)


@pytest.fixture
async def lan(_usable: None) -> AsyncIterator[Lan]:
    """A switch with three hosts on it: ash, birch and cedar."""
    network = Lan()
    try:
        network.build(("ash", "birch", "cedar"))
        yield network
    finally:
        try:
            await network.stop()
        finally:
            network.close()
