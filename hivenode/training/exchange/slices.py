"""Who owns how much of a vector, from what the links were measured to carry. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

ALIKE = 0.5
"""Members at least this fast, relative to the fastest, count as alike: measurements swing, and equal slices keep
buffers as they are."""


def speeds(rates: Mapping[int, Mapping[int, float]], ranks: Sequence[int]) -> dict[int, float]:
    """Bytes a second each member can move, by the narrower of its two directions.

    Args:
        rates: by sender, then receiver, what went over each link while it was busy. A link nobody has measured
            counts like the mean of its sender's others, else of all.
    """
    known = [rates[a][b] for a in ranks if a in rates for b in ranks if b in rates[a]]
    if not known:
        return dict.fromkeys(ranks, 1.0)
    overall = sum(known) / len(known)
    table = {a: _filled(rates.get(a, {}), a, ranks, overall) for a in ranks}
    return {
        rank: min(sum(table[rank].values()), sum(row[rank] for a, row in table.items() if a != rank)) or overall
        for rank in ranks
    }


def _filled(row: Mapping[int, float], sender: int, ranks: Sequence[int], overall: float) -> dict[int, float]:
    measured = [row[b] for b in ranks if b in row and b != sender]
    usual = sum(measured) / len(measured) if measured else overall
    return {b: row.get(b, usual) for b in ranks if b != sender}


def shares(speed: Mapping[int, float]) -> dict[int, float]:
    """Relative slices by which all are done at the same time.

    Every member sends and receives the vector once, and each owner its slice `n - 2` times more: with a fraction `f`,
    `(1 + (n - 2) f) / speed` of the time. So all that can are brought to one `t` with `f = (t * speed - 1) / (n - 2)`
    and the rest own nothing.
    """
    count = len(speed)
    fastest = max(speed.values(), default=0.0)
    if count <= 2 or fastest <= 0.0:
        return dict.fromkeys(speed, 1.0)
    relative = {rank: 1.0 if value >= ALIKE * fastest else value / fastest for rank, value in speed.items()}
    # Sum of f over those above zero is 1: t = (n - 2 + m) / sum(speed), for the m fastest.
    order = sorted(relative.values(), reverse=True)
    level, running = 0.0, 0.0
    for index, value in enumerate(order, 1):
        running += value
        level = (count - 2 + index) / running
        if index == len(order) or level * order[index] <= 1.0:
            break
    return {rank: max(0.0, (level * value - 1.0) / (count - 2)) for rank, value in relative.items()}
