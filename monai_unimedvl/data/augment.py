# SPDX-License-Identifier: Apache-2.0
"""Small changes to training dialogues that keep every word true, but for levels (`abridged`).

All images of a sample move alike. What may change is a matter of the task: masks keep their colours,
translations their intensities, drawn images their place; nothing is mirrored where words say left or right.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_unimedvl.sequence import Turn


@dataclass(frozen=True)
class Change:
    """How far a task's images may move.

    Args:
        angle: degrees. scale: relative. shift: share of the side.
        stretch: of one side against the other, relative. bend: deviation of a smooth warp, share of the side.
        gamma: of images the user gives; log of the exponent, up to 1.5 times this either way.
        gain: of all images but masks; the factor is 1 - gain to 1 + gain.
        noise: deviation of noise on images the user gives, at most; erase: side of a black square on them, as
            a share of theirs, at most.
        mirror: left-right flips. turn: quarter turns and flips.
    """

    angle: float = 0.0
    scale: float = 0.0
    shift: float = 0.0
    stretch: float = 0.0
    bend: float = 0.0
    gamma: float = 0.0
    gain: float = 0.0
    noise: float = 0.0
    erase: float = 0.0
    mirror: bool = False
    turn: bool = False


READING = Change(
    angle=15, scale=0.15, shift=0.15, stretch=0.08, bend=0.015, gamma=0.33, gain=0.25, noise=0.06, erase=0.2
)
FINDING = replace(READING, mirror=True)  # what is where, when no word tells left from right
MASK = Change(angle=12, scale=0.1, shift=0.08, stretch=0.06, bend=0.015, gamma=0.25, gain=0.15, mirror=True)
PAIR = Change(angle=8, scale=0.08, shift=0.05, stretch=0.05, bend=0.012, gamma=0.05, mirror=True)
PATCH = Change(turn=True)
RECOLOURED = 0.35  # share of training pictures with one channel in a contrast that no scanner has
MISPLACED = 0.45  # of abridged descriptions, see `abridged`
OF_CONTRAST = ("contrast", "tumour", "nuclei", "csf")  # questions that such a picture cannot answer
BENDS = 5  # points a side of a smooth warp
TONES = 6  # points of a curve that recolours
LEVELLED = re.compile(
    r"(?P<what>.+) at the level of (?P<level>.+?), (?P<kind>[^.]+)\.(?P<seen> Visible: .+\.)?"
)
CHANGES = {
    "vqa": READING, "caption": READING, "seg-parcels": FINDING, "seg-any": READING,
    "text-to-image": Change(angle=2, scale=0.02, shift=0.01),
    "seg-tissue": MASK, "seg-lobes": MASK, "seg-tumour": MASK, "seg-bone": MASK,
    "seg-nuclei": Change(turn=True, gamma=0.2, gain=0.1), "sr4": Change(mirror=True, gain=0.1),
    "t1-to-t2": PAIR, "t1-to-pd": PAIR, "t2-to-t1": PAIR, "t1-to-gm": PAIR,
    "ct-to-bone": Change(angle=8, scale=0.06, shift=0.05, mirror=True), "h-to-he": PATCH, "h-to-ihc": PATCH,
}  # fmt: skip


def augment(
    turns: Sequence[Turn], generator: torch.Generator, *, task: str, mirror: bool = True
) -> list[Turn]:
    """The dialogue with its images changed as `CHANGES[task]` allows; a task without an entry is left alone.

    Args:
        generator: the same state gives the same change.
        mirror: False where words say left or right, whatever the task.
    """
    change = CHANGES.get(task)
    if change is None:
        return list(turns)
    change = change if mirror else replace(change, mirror=False)
    draw = (torch.rand(10, generator=generator) * 2 - 1).tolist()
    warp = torch.randn(2, BENDS, BENDS, generator=generator) if change.bend else None
    is_mask = task.startswith("seg-")
    changed = []
    for turn in turns:
        parts: list[str | Tensor] = []
        for part in turn.parts:
            if isinstance(part, Tensor):
                part = _move(part, change, draw, warp, nearest=is_mask and turn.role == "assistant")
                if not (is_mask and turn.role == "assistant"):
                    part = _shade(part, change, draw, given=turn.role == "user")
                if turn.role == "user" and (change.noise or change.erase):
                    part = _spoil(part, change, generator)
            parts.append(part)
        changed.append(Turn(turn.role, parts))
    return changed


def recolour(image: Tensor, generator: torch.Generator) -> Tensor:
    """(3, H, W) in [0, 1], grey, through a curve drawn by chance: a contrast that no scanner has.

    Black stays nearly black. What is where in the picture stays true, what the contrast is does not.
    """
    heights = torch.rand(TONES, generator=generator)
    heights[0] *= 0.02
    place = image[0] * (TONES - 1)
    below = place.long().clamp(0, TONES - 2)
    grey = heights[below] + (heights[below + 1] - heights[below]) * (place - below)
    return grey.expand_as(image).contiguous()


def abridged(words: str, generator: torch.Generator, elsewhere: Sequence[str] = ()) -> str:
    """A description with things left out, as a user would type it: "Coronal T2 MRI".

    Args:
        words: of a slice with a level, "Coronal T2 MRI at the level of the thalamus, smooth average. Visible:
            ..."; of others, sentences after the first may go.
        generator: the same state leaves out the same.
        elsewhere: levels that slices of this plane never lie at; in a share `MISPLACED` one of them takes the
            place of the true one, so that the plane is drawn as told beside a level that it never came with.
    """
    draw = torch.rand(4, generator=generator).tolist()
    found = LEVELLED.fullmatch(words)
    if found is None:
        return words if draw[0] < 0.5 else words.split(". ")[0].rstrip(".") + "." * (draw[1] < 0.5)
    what, level, kind, seen = found.group("what", "level", "kind", "seen")
    if elsewhere and draw[0] < MISPLACED:
        level = elsewhere[int(draw[3] * len(elsewhere))]
        seen = seen if draw[1] < 0.5 else None
    elif draw[0] < (1 + MISPLACED) / 2:
        level, seen = None, None
        kind = kind if draw[1] < 0.4 else None
    else:
        seen = None
        kind = kind if draw[1] < 0.4 else None
    place = f" at the level of {level}" if level else ""
    end = "." if kind or draw[2] < 0.5 else ""
    return f"{what}{place}{f', {kind}' if kind else ''}{end}{seen or ''}"


def _move(image: Tensor, change: Change, draw: list[float], warp: Tensor | None, *, nearest: bool) -> Tensor:
    """(3, H, W) turned, scaled, shifted, mirrored, warped; zeros come in from outside."""
    if change.mirror and draw[0] > 0:
        image = image.flip(-1)
    if change.turn:
        image = image.rot90(int((draw[1] + 1) * 2) % 4, (-2, -1))
        image = image.flip(-1) if draw[2] > 0 else image
    if not (change.angle or change.scale or change.shift):
        return image.contiguous()
    angle, scale = math.radians(change.angle * draw[3]), 1 + change.scale * draw[4]
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    shift_x, shift_y, tall = (
        2 * change.shift * draw[5],
        2 * change.shift * draw[6],
        1 + change.stretch * draw[9],
    )
    matrix = torch.tensor([[[cos, -sin, shift_x], [sin * tall, cos * tall, shift_y]]], dtype=image.dtype)
    grid = F.affine_grid(matrix, [1, *image.shape], align_corners=False)
    if warp is not None:
        smooth = F.interpolate(warp[None], image.shape[-2:], mode="bicubic", align_corners=True)
        grid = grid + 2 * change.bend * smooth.movedim(1, -1).to(grid)
    return F.grid_sample(image[None], grid, mode="nearest" if nearest else "bilinear", align_corners=False)[0]


def _shade(image: Tensor, change: Change, draw: list[float], *, given: bool) -> Tensor:
    """(3, H, W) in [0, 1] with another gamma (images that the user gives) and gain."""
    if change.gamma and given:
        image = image.clamp(min=0) ** math.exp(change.gamma * 1.5 * draw[7])
    if change.gain:
        image = image * (1 + change.gain * draw[8])
    return image.clamp(0, 1)


def _spoil(image: Tensor, change: Change, generator: torch.Generator) -> Tensor:
    """(3, H, W) in [0, 1] with grey noise and a black square, so that no picture is learnt by heart."""
    size, level, *corner = torch.rand(4, generator=generator).tolist()
    grain = torch.randn(image.shape[-2:], generator=generator).to(image)
    image = (image + change.noise * level * grain).clamp(0, 1)
    sides = [round(side * change.erase * size) for side in image.shape[-2:]]
    top, left = (round((s - e) * c) for s, e, c in zip(image.shape[-2:], sides, corner, strict=True))
    image[:, top : top + sides[0], left : left + sides[1]] = 0
    return image
