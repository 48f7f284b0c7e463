"""The scaling table as a picture: seconds of an all-reduce over the size of the vector, both logarithmic. Plain SVG."""

from __future__ import annotations

import math
from collections.abc import Sequence

WIDTH, HEIGHT, MARGIN = 720, 460, 70
COLOURS = {2: "#1b9e77", 4: "#d95f02", 8: "#7570b3"}
DASHES = {"gloo": "2 4", "fp32": "", "fp16": "8 4"}
LABELS = {"gloo": "gloo, plaintext", "fp32": "hivenode, TLS", "fp16": "hivenode, TLS, fp16"}


def draw(rows: Sequence[dict[str, object]]) -> str:
    """SVG of rows with `workers`, `megabytes`, and seconds by `gloo`, `fp32`, `fp16`."""
    sizes = [float(str(row["megabytes"])) for row in rows]
    times = [float(str(row[kind])) for row in rows for kind in DASHES]
    low, high = math.floor(math.log10(min(times))), math.ceil(math.log10(max(times)))
    left, right = math.log10(min(sizes)), math.log10(max(sizes))

    def x(megabytes: float) -> float:
        return MARGIN + (math.log10(megabytes) - left) / max(right - left, 1e-9) * (WIDTH - 2 * MARGIN)

    def y(seconds: float) -> float:
        return HEIGHT - MARGIN - (math.log10(seconds) - low) / max(high - low, 1e-9) * (HEIGHT - 2 * MARGIN)

    parts = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{HEIGHT}" font-family="sans-serif">']
    parts.append(f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>')
    for power in range(low, high + 1):
        at = y(10.0**power)
        parts.append(f'<line x1="{MARGIN}" y1="{at:.0f}" x2="{WIDTH - MARGIN}" y2="{at:.0f}" stroke="#ddd"/>')
        parts.append(
            f'<text x="{MARGIN - 8}" y="{at + 4:.0f}" font-size="12" text-anchor="end">{10.0**power:g} s</text>'
        )
    foot = HEIGHT - MARGIN + 20
    parts += [
        f'<text x="{x(size):.0f}" y="{foot}" font-size="12" text-anchor="middle">{size:g} MB</text>'
        for size in sorted(set(sizes))
    ]
    for workers, colour in COLOURS.items():
        for kind, dash in DASHES.items():
            mine = [row for row in rows if row["workers"] == workers]
            points = " ".join(f"{x(float(str(r['megabytes']))):.1f},{y(float(str(r[kind]))):.1f}" for r in mine)
            style = f'fill="none" stroke="{colour}" stroke-width="2" stroke-dasharray="{dash}"'
            parts.append(f'<polyline points="{points}" {style}/>')
    for index, (workers, colour) in enumerate(COLOURS.items()):
        parts.append(
            f'<text x="{MARGIN + 10}" y="{30 + 16 * index}" font-size="13" fill="{colour}">{workers} workers</text>'
        )
    for index, (kind, dash) in enumerate(DASHES.items()):
        at = 26 + 16 * index
        parts.append(f'<line x1="180" y1="{at}" x2="220" y2="{at}" stroke="black" stroke-dasharray="{dash}"/>')
        parts.append(f'<text x="228" y="{at + 4}" font-size="13">{LABELS[kind]}</text>')
    return "\n".join([*parts, "</svg>", ""])
