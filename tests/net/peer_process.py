"""A node in a process of its own: prints its id and address, then runs until it is killed."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.net.nodes import node


async def main(number: int, directory: Path) -> None:
    async with node(number, directory) as one:
        print(one.id, one.address, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1]), Path(sys.argv[2])))
