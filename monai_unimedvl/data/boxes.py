# SPDX-License-Identifier: Apache-2.0
"""The regions of a record as boxes that lie over its picture: an SVG, so that they can be taken off.

Shown are the boxes of the facts, and those that only the words name. Both count on the record's first image.
Each bears the number of its label: of a hundred nuclei all say the same.
  H rows   W columns
"""

from __future__ import annotations

import base64
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch

from monai_unimedvl.data.facts import Box, boxes_of
from monai_unimedvl.data.record import Record
from monai_unimedvl.transforms.regions import regions_in

# Seven colours that most colour-blind readers tell apart, after Okabe and Ito (2008).
COLOURS = ("#e69f00", "#56b4e9", "#009e73", "#f0e442", "#0072b2", "#d55e00", "#cc79a7")
NAMELESS = "named in the words"
APART = 0.005  # of a side: boxes that differ by less are one, since words count in thousandths


def outlined(record: Record) -> dict[str, Any] | None:
    """{"address": of the SVG, "labels": [{"label", "count", "colour"}]}; None without a box or a picture."""
    images = record.input_img or record.output_img
    if not images:
        return None
    height, width = images[0].height, images[0].width
    boxes = boxes_of(record.facts)
    blank = torch.empty(1, height, width, device="meta")  # words count in shares of a size
    for message in record.message:
        for region in regions_in(message.value, blank):  # type: ignore[arg-type]
            told = Box(region.label or NAMELESS, region.left, region.top, region.right, region.bottom)
            if not any(_same(told, box, width, height) for box in boxes):
                boxes.append(told)
    if not boxes:
        return None
    counts = Counter(box.label for box in boxes)
    drawn = _svg(boxes, list(counts), width, height)
    address = f"data:image/svg+xml;base64,{base64.b64encode(drawn.encode()).decode()}"
    legend = [
        {"label": label, "count": count, "colour": _colour(place)}
        for place, (label, count) in enumerate(counts.items())
    ]
    return {"address": address, "labels": legend}


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _same(one: Box, other: Box, width: int, height: int) -> bool:
    across = max(abs(one.left - other.left), abs(one.right - other.right)) / width
    down = max(abs(one.top - other.top), abs(one.bottom - other.bottom)) / height
    return max(across, down) <= APART


def _svg(boxes: Sequence[Box], labels: Sequence[str], width: int, height: int) -> str:
    """Boxes with the numbers of their labels, on nothing; a point is a small one."""
    side = max(width, height)
    line, letter = side / 150, side / 18
    parts = []
    for box in boxes:
        number, least = labels.index(box.label) + 1, 2 * line
        colour = _colour(number - 1)
        x, y = (min(box.left, width - least), min(box.top, height - least))
        across, down = max(box.right - box.left, least), max(box.bottom - box.top, least)
        place = f'x="{x:g}" y="{y:g}" width="{across:g}" height="{down:g}"'
        above = y - line if y > letter else min(y + down + letter, height - line)
        at = f'x="{min(x, width - letter):g}" y="{above:g}" font-size="{letter:g}"'
        parts += [
            f'<rect {place} fill="none" stroke="#000" stroke-width="{2 * line:g}" stroke-opacity=".6"/>',
            f'<rect {place} fill="none" stroke="{colour}" stroke-width="{line:g}"/>',
            f'<text {at} fill="{colour}" stroke="#000" stroke-width="{line:g}" paint-order="stroke" '
            f'font-family="sans-serif" font-weight="bold">{number}</text>',
        ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" '
        f'height="{height}" preserveAspectRatio="none">{"".join(parts)}</svg>'
    )
