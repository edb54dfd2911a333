# SPDX-License-Identifier: Apache-2.0
"""Dialogues with square pictures, for networks that were made for nothing else.

The command line, the server and MONAI Label pad what they show such a network (`choosing.Choice`); in
training records go through `squared`, so that both are one.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from monai_unimedvl.sequence import Turn
from monai_unimedvl.transforms.field import SquareField
from monai_unimedvl.transforms.geometry import Box
from monai_unimedvl.transforms.regions import moved


def squared(turns: Sequence[Turn]) -> list[Turn]:
    """A dialogue with pictures padded to squares about their middle, and boxes and points moved with them.

    A mark in words is of the last picture before it, or where there is none, of the first.

    Args:
        turns: of words and pictures (3, H, W) in [0, 1].
    """
    field = SquareField("square")
    pictures = [part for turn in turns for part in turn.parts if isinstance(part, Tensor)]
    if all(picture.shape[-2] == picture.shape[-1] for picture in pictures):
        return list(turns)
    seen = pictures[0]
    found: list[Turn] = []
    for turn in turns:
        parts: list[str | Tensor] = []
        for part in turn.parts:
            if isinstance(part, Tensor):
                seen = part
                parts.append(_box(field, part).apply(part.as_subclass(Tensor)))
            else:
                parts.append(moved(part, (seen.shape[-2], seen.shape[-1]), _box(field, seen)))
        found.append(Turn(turn.role, parts))
    return found


def _box(field: SquareField, picture: Tensor) -> Box:
    plan = field.plan(picture.as_subclass(Tensor), (picture.shape[-2], picture.shape[-1]))
    assert isinstance(plan, Box)
    return plan
