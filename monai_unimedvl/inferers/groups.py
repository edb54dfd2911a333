# SPDX-License-Identifier: Apache-2.0
"""Neighbouring slices drawn together: one noisy span over several canvases, each a position further.

What was drawn before can be held, so that groups join along a volume with overlap: at every step the slices
that are known lie on their own straight path to the noise, and the others are drawn to fit them.
  N prompts   G slices of a group   h, w latent tokens down and across   C numbers a latent token
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.inferers.context import Branches, check_batch
from monai_unimedvl.inferers.drawing import ImageInferer
from monai_unimedvl.inferers.inferers import shown
from monai_unimedvl.inferers.sampling import flow_steps
from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.networks.starts import given
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, Prompt, Segment
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.image import resize
from monai_unimedvl.transforms.segments import checked_picture


class GroupInferer(ImageInferer):
    """Batch of prompts -> for each a group of neighbouring slices, drawn together.

    A prompt with images gives as many drawings as it has images, each beginning at its own; one with words
    alone gives `count`, such as "Three slices, 4 mm apart. Axial T1 MRI ...".

    Args:
        tokenizer: of the network.
        count: G where the prompt has no images, and the most that a `VolumeInferer` puts into one prompt.
        overlap: slices of the last group that a `VolumeInferer` shows to the next and holds.
        same_noise: all slices of a group begin with the noise of one; otherwise each with its own.
        options: those of `ImageInferer`; `think` is not among them.

    Raises:
        ValueError: fewer than two slices, an overlap that leaves no new slice, or think.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        count: int = 3,
        overlap: int = 1,
        same_noise: bool = True,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if count < 2 or not 0 <= overlap < count:
            raise ValueError(
                f"GroupInferer got count={count}, overlap={overlap}, expected 2 or more slices and an "
                "overlap below them: use ImageInferer for single slices."
            )
        if self.think:
            raise ValueError("GroupInferer got think=True, which is for single drawings: leave it out.")
        self.count, self.overlap, self.same_noise = count, overlap, same_noise

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, batch: Sequence[Prompt], network: UniMedVL,
        known: Sequence[Sequence[Tensor | None]] | None = None, *args: Any, **kwargs: Any,
    ) -> list[list[Tensor]]:  # fmt: skip
        """For each prompt its G slices (3, H, W) in [0, 1].

        Args:
            known: for each prompt G images (3, H, W) in [0, 1] that are there already, or None where one is
                to be drawn; they come back as the autoencoder gives them.

        Raises:
            ValueError: as `ImageInferer`; images of different sizes in one prompt; not G known ones.
        """
        segmenter = self._segmenter(network)
        prompts = check_batch(batch, "GroupInferer")
        held = [()] * len(prompts) if known is None else known
        if len(held) != len(prompts):
            raise ValueError(
                f"GroupInferer got known slices of {len(held)} prompts, expected {len(prompts)}: give one "
                "list a prompt."
            )
        segments = network.encode([segmenter(prompt, draw=True, history=True) for prompt in prompts])
        made: list[list[Tensor]] = []
        for n, (parts, there, generator) in enumerate(
            zip(segments, held, self._generators(len(prompts)), strict=True)
        ):
            self._check_group(n, parts)
            branches = Branches(network, segmenter, prompts=1, guidance=self.guidance)
            branches.read([parts])
            made.append(self._group(branches, parts, there, generator))
        return made

    def _group(
        self, branches: Branches, parts: Sequence[Segment], known: Sequence[Tensor | None],
        generator: torch.Generator,
    ) -> list[Tensor]:  # fmt: skip
        """The slices of one prompt."""
        network = branches.context.network
        sources = _sources(parts)
        count = len(sources) or self.count
        grid = self._grid(network, parts)
        if known and len(known) != count:
            raise ValueError(
                f"GroupInferer got {len(known)} known slices for a group of {count}, expected an image or "
                "None for each: correct the list."
            )
        tokens = grid[0] * grid[1]
        drawn = partial(torch.randn, tokens, network.latent_size, generator=generator, dtype=torch.float32)
        noise = [drawn()]
        for _ in range(count - 1):
            noise.append(noise[0] if self.same_noise else drawn())
        starts = [source.latents for source in sources] if sources and sources[0].grid == grid else None
        loop = flow_steps(
            branches.context, [grid] * count, self.guidance, steps=self.steps, shift=self.shift, noise=noise,
            together=count, starts=starts, known=[self._latents(network, image, grid) for image in known],
            solver=self.solver, skip=self.skip,
        )  # fmt: skip
        *_, (_, latents) = shown(loop, self.progress, self.steps, "steps")
        return [self._sized(network.decode(x, grid)) for x in latents]

    def _latents(self, network: UniMedVL, image: Tensor | None, grid: tuple[int, int]) -> Tensor | None:
        """(3, H, W) in [0, 1], as prompts have it -> (h*w, C)"""
        if image is None:
            return None
        side = network.canvas_stride
        known = checked_picture(image, "a known slice").cpu()
        fitted = resize(known, (grid[1] * side, grid[0] * side), (0.0, 1.0))
        weight = network.decoder.embed.weight
        centred = (fitted * 2 - 1)[None].to(weight)
        coded: Tensor = network.autoencoder.encode_stage_2_inputs(centred)  # type: ignore[operator]
        return patchify(coded[0], network.latent_patch)

    def _check_group(self, n: int, segments: Sequence[Segment]) -> None:
        canvases = _sources(segments)
        self._check_guidance(n, any(not isinstance(p, Canvas) for p in segments), bool(canvases))
        grids = {canvas.grid for canvas in canvases}
        if len(grids) > 1 or len(canvases) == 1:
            raise ValueError(
                f"prompt {n} has {len(canvases)} images of {len(grids)} sizes, but a group has two or more "
                "of one size: give neighbouring slices, or use ImageInferer."
            )


def _sources(segments: Sequence[Segment]) -> list[Canvas]:
    return given([part for part in segments if isinstance(part, Canvas)])


def windows(shown_: Iterator[Any], count: int, overlap: int) -> Iterator[tuple[list[Any], int]]:
    """Runs of neighbours in groups of at most `count`, each with the last `overlap` of the one before.

    Args:
        shown_: items in order; None ends a run.

    Yields:
        The items of a group, and how many of them come first and are known. A run of one is a group of one.
    """
    tail: list[Any] = []
    waiting: list[Any] = []
    for item in shown_:
        if item is not None:
            waiting.append(item)
        if waiting and (item is None or len(tail) + len(waiting) == count):
            yield [*tail, *waiting], len(tail)
            tail = [*tail, *waiting][-overlap:] if overlap else []
            waiting = []
        if item is None:
            tail = []
    if waiting:
        yield [*tail, *waiting], len(tail)
