# SPDX-License-Identifier: Apache-2.0
"""Tokens that say what the neighbouring slice has said are dropped, before the decoder reads them.

After Hulu-Med (arXiv 2510.08668) and OmniV-Med (2025), which drop patches of a slice or frame that differ
little from the same place in the one before. Here a share is promised, and the limit is found for it.
  n slices   P patches a slice   p side of a patch
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monai_unimedvl.sequence import Segment, Text, View

SEARCHES = 14  # of the limit: to 1/16,000 of the range


class PruneTokens:
    """Segments of a prompt -> the same, with `View.kept` set where slices follow each other.

    Slices are views of one size with at most words between them. The first is kept whole, and so is a single
    image: nothing repeats it. A patch is compared with the last one kept at its place, so that slow change
    adds up and is seen. The vision encoder still sees every patch; the decoder, where the cost lies, reads
    the rest.

    Args:
        budget: share of the tokens of a run of slices that is dropped at least; None drops what repeats and
            promises no share. Of n slices at most (n-1)/n can go.
        threshold: mean difference in [0, 1] of the grey levels up to which a patch repeats; with a budget it
            is the least limit, which is raised until the budget is met.

    Raises:
        ValueError: neither of the two, or a value out of range.

    Example::

        infer = TextInferer(tokenizer, prune=PruneTokens(0.55))
        answer, = infer([[*recipe("ct")(folder), "Is there a fracture?"]], network)
    """

    def __init__(self, budget: float | None = 0.55, threshold: float = 0.0) -> None:
        if (budget is not None and not 0 < budget < 1) or not 0 <= threshold < 1:
            raise ValueError(
                f"PruneTokens got budget={budget}, threshold={threshold}, expected a share between 0 and 1 "
                "(or None), and a difference from 0 to below 1: correct them."
            )
        if budget is None and threshold == 0:
            raise ValueError(
                "PruneTokens got neither budget nor threshold, expected one at least: give budget=0.55."
            )
        self.budget, self.threshold = budget, threshold

    def __call__(self, segments: Sequence[Segment]) -> list[Segment]:
        """The segments; views that keep all are left as they are."""
        found = list(segments)
        for run in _runs(found):
            views = [found[i] for i in run]
            patches = torch.stack([view.patches for view in views])  # type: ignore[union-attr]
            for i, keep in zip(run, self.kept(patches), strict=True):
                if not bool(keep.all()):
                    found[i] = replace(found[i], kept=keep.nonzero().squeeze(1))  # type: ignore[call-arg]
        return found

    def kept(self, patches: Tensor) -> Tensor:
        """Which patches of neighbouring slices are kept: (n, P, p*p*3) in [-1, 1] -> (n, P) bool"""
        count, places, _ = patches.shape
        limit = self.threshold
        keep = _different(patches, limit)
        if self.budget is None:
            return keep
        goal = min(self.budget, (count - 1) / count) * count * places  # tokens to drop
        if float((~keep).sum()) >= goal:
            return keep
        low, high = limit, 1.0  # no patch differs by more than the whole range
        for _ in range(SEARCHES):
            middle = (low + high) / 2
            trial = _different(patches, middle)
            if float((~trial).sum()) >= goal:
                high = middle
            else:
                low = middle
        return _different(patches, high)


def share_dropped(segments: Sequence[Segment]) -> float:
    """The share of image tokens that are not read, in [0, 1]."""
    views = [segment for segment in segments if isinstance(segment, View) and not segment.dropped]
    whole = sum(len(view.patches) for view in views)
    return 1 - sum(view.tokens for view in views) / whole if whole else 0.0


def _different(patches: Tensor, limit: float) -> Tensor:
    """(n, P) bool: where a patch differs by more than `limit` from the last one kept at its place."""
    keep = torch.ones(patches.shape[:2], dtype=torch.bool)
    last = patches[0]
    for n in range(1, len(patches)):
        keep[n] = (patches[n] - last).abs().mean(-1) / 2 > limit
        last = torch.where(keep[n].unsqueeze(-1), patches[n], last)
    return keep


def _runs(segments: Sequence[Segment]) -> Iterator[list[int]]:
    """Places of two or more views of one size that follow each other, words between them or not."""
    run: list[int] = []
    for i, segment in enumerate(segments):
        if isinstance(segment, Text):
            continue
        view = segment if isinstance(segment, View) and not segment.dropped else None
        if run and (view is None or view.grid != segments[run[0]].grid):  # type: ignore[union-attr]
            if len(run) > 1:
                yield run
            run = []
        if view is not None:
            run.append(i)
    if len(run) > 1:
        yield run
