# SPDX-License-Identifier: Apache-2.0
"""What a drawing may start from: the images before it in its sample."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

from torch import Tensor

from monai_unimedvl.sequence import Canvas, Segment

Bases = dict[tuple[int, int], Canvas]  # of each grid, with its latents (h*w, C)


def bases(segments: Sequence[Segment], past: Bases | None = None) -> Bases:
    """What a later drawing may start from: of each grid the last clean canvas that was given.

    Where none was, it is the last that was drawn here: "draw a brain", then "segment it".

    Args:
        past: what was read earlier.
    """
    found = dict(past or {})
    for canvas in segments:
        if not isinstance(canvas, Canvas) or canvas.noisy or canvas.dropped or canvas.latents is None:
            continue
        if canvas.given or canvas.grid not in found or not found[canvas.grid].given:
            found[canvas.grid] = canvas
    return found


def based(segments: Sequence[Segment], past: Bases | None = None) -> list[Segment]:
    """The segments, in which each noisy canvas starts from a clean canvas of its grid before it: see `bases`.

    Neighbouring slices that are drawn together, as many as there are clean canvases of their grid before
    them, start each from its own.

    Args:
        past: the `bases` of what was read earlier.
    """
    found: list[Segment] = []
    for group in _joined(segments):
        starts = _sources(found, group) or [_last(found, group[0], past)] * len(group)
        for segment, start in zip(group, starts, strict=True):
            if isinstance(segment, Canvas) and segment.noisy and segment.base is None and start is not None:
                segment = replace(segment, base=start)
            found.append(segment)
    return found


def _joined(segments: Sequence[Segment]) -> Iterable[list[Segment]]:
    """Each segment by itself, but canvases that are drawn together in one list."""
    group: list[Segment] = []
    for segment in segments:
        if group and not (isinstance(segment, Canvas) and segment.joined):
            yield group
            group = []
        group.append(segment)
    if group:
        yield group


def _sources(before: Sequence[Segment], group: Sequence[Segment]) -> list[Tensor | None] | None:
    """The clean canvases that a group is drawn from, one each; None where they are not as many."""
    if len(group) < 2:
        return None
    read = (s for s in before if isinstance(s, Canvas) and not s.noisy)
    clean = given([s for s in read if s.grid == group[0].grid])  # type: ignore[union-attr]
    if len(clean) != len(group) or any(s.dropped for s in clean):
        return None
    return [s.latents for s in clean]


def _last(before: Sequence[Segment], segment: Segment, past: Bases | None) -> Tensor | None:
    """What a canvas starts from where it is drawn alone."""
    if not isinstance(segment, Canvas):
        return None
    start = bases(before, past).get(segment.grid)
    return None if start is None else start.latents


def given(canvases: Sequence[Canvas]) -> list[Canvas]:
    """Those that were given; where none was, those that were drawn."""
    return [canvas for canvas in canvases if canvas.given] or list(canvases)
