# SPDX-License-Identifier: Apache-2.0
"""One sample in training: conditions left out by chance, its generator."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch

from monai_unimedvl.sequence import Canvas, Segment, Text, View
from monai_unimedvl.transforms.pruning import PruneTokens

REPEATED = PruneTokens(0.55)  # what neighbouring slices repeat: five of nine patches


class Dropout(NamedTuple):
    """Chances that a condition is left out in training, so that guidance has its branches.

    A user's text, and the images as views or clean canvases; what has a loss is never dropped.

    Args:
        patches: the largest share of the patches of a sample's views that the decoder does not read; chance
            says how many, and which. Against pictures learnt by heart (after PatchDropout, arXiv 2208.07220).
        repeats: chance that of slices that follow each other only what is new is read, as `PruneTokens(0.55)`
            drops it in inference.
    """

    text: float = 0.0
    view: float = 0.0
    canvas: float = 0.0
    patches: float = 0.0
    repeats: float = 0.0


def drop_conditions(
    segments: Sequence[Segment], dropout: Dropout, generator: torch.Generator
) -> list[Segment]:
    """The segments with conditions marked as dropped by chance; a kind is dropped as a whole."""
    text, view, canvas = (torch.rand(3, generator=generator) < torch.tensor(dropout[:3])).tolist()
    share = dropout.patches and dropout.patches * float(torch.rand((), generator=generator))
    if dropout.repeats and float(torch.rand((), generator=generator)) < dropout.repeats:
        segments = REPEATED(segments)
    dropped: list[Segment] = []
    for segment in segments:
        if isinstance(segment, Text) and text and not segment.loss:
            segment = replace(segment, dropped=True)
        elif isinstance(segment, View) and view:
            segment = replace(segment, dropped=True)
        elif isinstance(segment, View) and share and segment.kept is None:
            order = torch.randperm(len(segment.patches), generator=generator)
            segment = replace(
                segment, kept=order[min(round(share * len(order)), len(order) - 1) :].sort().values
            )
        elif isinstance(segment, Canvas) and canvas and not segment.noisy:
            segment = replace(segment, dropped=True)
        dropped.append(segment)
    return dropped


def generator_of(seed: int, stream: int, index: int, epoch: int) -> torch.Generator:
    """A generator of its own for every (seed, stream, index, epoch)."""
    mixed = seed
    for part in (stream + 1, index + 1, epoch + 1):  # splitmix-like: neighbours must not look alike
        mixed = (mixed * 6364136223846793005 + part + 1442695040888963407) & (2**63 - 1)
        mixed ^= mixed >> 29
    return torch.Generator().manual_seed(mixed)
