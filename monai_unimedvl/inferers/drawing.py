# SPDX-License-Identifier: Apache-2.0
"""Prompts in; images out, alone or between texts. What prompts and batches are: see `inferers.py`."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral, Real
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from monai_unimedvl.flow import Guidance, Skip, Stepper, intervals
from monai_unimedvl.inferers.context import Branches, check_batch
from monai_unimedvl.inferers.inferers import THINK_TO_ANSWER, THINK_TO_DRAW, Answer, PromptInferer, shown
from monai_unimedvl.inferers.sampling import flow_steps
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, Prompt, Segment, Text, View
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.transforms.image import resize
from monai_unimedvl.transforms.segments import made_here

Kind = Literal["text", "image"]
Output = Kind | tuple[Kind, str]  # what to make, and after which instruction


class _Drawing(PromptInferer):
    """What the two drawing inferers share: size, steps, guidance."""

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        size: tuple[int, int] | None = None,
        steps: int = 49,  # the reference's num_timesteps=50 counts points
        shift: float = 3.0,
        guidance: Guidance | None = None,
        solver: str = "euler",
        skip: Skip | None = None,
        **options: Any,
    ) -> None:
        super().__init__(tokenizer, **options)
        if not _is_number(steps) or steps < 1 or steps != int(steps):
            raise ValueError(f"steps is {steps!r}, expected a whole number from 1 on: change it.")
        if guidance is not None and not isinstance(guidance, Guidance):
            raise ValueError(f"guidance is {guidance!r}, expected a Guidance: write Guidance(text=...).")
        if not _is_number(shift) or shift <= 0:
            raise ValueError(f"shift is {shift!r}, expected above 0 (1 is none): raise it.")
        if size is not None and not (np.shape(size) == (2,) and all(isinstance(n, Integral) for n in size)):
            raise ValueError(f"size is {size!r}, expected (height, width) in whole pixels: give both.")
        steps = int(steps)
        self.size, self.steps, self.shift = size, steps, shift
        self.guidance = guidance or Guidance()
        intervals(steps, solver), Stepper(solver, skip=skip)  # either says what is wrong with them
        self.solver, self.skip = solver, skip

    def _grid(self, network: UniMedVL, segments: Sequence[Segment]) -> tuple[int, int]:
        """Latent tokens down and across of the next drawing: of `size`, of the last image, or the largest."""
        canvases = [part for part in segments if isinstance(part, Canvas)]
        if self.size is None and canvases:
            return canvases[-1].grid
        stride, side = network.canvas_stride, network.latent_side
        height, width = self.size or (network.grids["canvas"][0] // stride * stride,) * 2
        largest = stride * side
        if height % stride or width % stride or not 0 < height <= largest or not 0 < width <= largest:
            raise ValueError(
                f"size is {(height, width)}, expected (height, width) in pixels, multiples of {stride} up to "
                f"{largest}: change it."
            )
        grid = height // stride, width // stride
        if canvases and network.prediction == "image" and grid not in {canvas.grid for canvas in canvases}:
            return canvases[-1].grid  # an edit starts from its source, on the source's grid
        return grid

    def _sized(self, image: Tensor) -> Tensor:
        """A drawing (3, h, w) in the size that was asked for, where it was drawn in another."""
        if self.size is None or image.shape[1:] == torch.Size(self.size):
            return image
        return resize(image, self.size[::-1], (0.0, 1.0))

    def _draw(
        self,
        branches: Branches,
        grids: Sequence[tuple[int, int]],
        generators: Sequence[torch.Generator],
    ) -> list[Tensor]:
        """An image (3, H, W) in [0, 1] for each prompt."""
        network = branches.context.network
        noise = [
            torch.randn(h * w, network.latent_size, generator=g, dtype=torch.float32)
            for (h, w), g in zip(grids, generators, strict=True)
        ]
        loop = flow_steps(
            branches.context, grids, self.guidance, steps=self.steps, shift=self.shift, noise=noise,
            solver=self.solver, skip=self.skip,
        )  # fmt: skip
        *_, (_, latents) = shown(loop, self.progress, self.steps, "steps")
        return [self._sized(network.decode(x, grid)) for x, grid in zip(latents, grids, strict=True)]

    def _check_guidance(self, n: int, texts: bool, images: bool) -> None:
        """Guidance needs something to leave out."""
        if self.guidance.text > 1 and not texts:
            raise ValueError(
                f"Guidance(text={self.guidance.text}) compares with the prompt without its words, but prompt "
                f"{n} has no text: add an instruction, or use text=1."
            )
        if self.guidance.image > 1 and not images:
            raise ValueError(
                f"Guidance(image={self.guidance.image}) compares with the prompt without its images, but "
                f"prompt {n} has no image: add one, or use image=1."
            )


class ImageInferer(_Drawing):
    """Batch of prompts -> images: drawn from words, or edited from the prompt's images.

    With `think` the model first writes a plan, which then stands in the full context and in the one without
    images. (The reference leaves it out of the latter, so its image guidance also pushes the plan:
    reference.md, defect 9.)

    Args:
        tokenizer: of the network.
        size: (H, W) in pixels, multiples of `network.canvas_stride`. By default that of the prompt's last
            image, fitted to the network's sizes; without an image the largest square. A network that draws
            from its source (`prediction="image"`, such as the nano) does so in the size of the source, and
            the result is resized.
        steps: network evaluations; the reference's num_timesteps=50 makes 49.
        shift: above 1 spends more steps near noise.
        guidance: weights against the prompt without its last text, and without its images.
        solver, skip: how the flow is followed, and which evaluations are left out; see `flow.Stepper` and
            `flow.Skip`. `steps` stays the number of evaluations at most.
        options: to_segments, fit, seed, generator, think, progress, and for the plan max_new_tokens,
            temperature, top_k, top_p, repetition_penalty, all as in `TextInferer`.

    Example::

        image, = ImageInferer(tokenizer, size=(64, 64))([["Axial T1 MRI of the brain"]], network)
    """

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, batch: Sequence[Prompt], network: UniMedVL, *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        """An image (3, H, W) in [0, 1] for each prompt.

        Raises:
            ValueError: as `TextInferer`; a size that does not fit; guidance without what it would leave out.
        """
        segmenter = self._segmenter(network)
        prompts = check_batch(batch, "ImageInferer")
        if not prompts:
            return []
        segments = [segmenter(prompt, draw=True, history=True) for prompt in prompts]
        grids = [self._grid(network, parts) for parts in segments]
        for n, parts in enumerate(segments):
            self._check_guidance(n, *_kinds(parts))
        generators = self._generators(len(prompts))
        branches = Branches(network, segmenter, prompts=len(prompts), guidance=self.guidance)
        system = self._system(THINK_TO_DRAW)
        branches.read([system + parts for parts in segments])
        if self.think:
            plans = self._answers(branches.context, generators, branches.full)
            branches.repeat([torch.tensor(plan.ids, dtype=torch.long) for plan in plans])
        return self._draw(branches, grids, generators)


class InterleavedInferer(_Drawing):
    """Batch of prompts -> for each a list of texts and images, made one after another in one context.

    Each output is read by those after it: text as the model's words, an image like an image of the prompt.

    Args:
        tokenizer: of the network.
        outputs: "text", "image", or a pair of either and an instruction, which is read first: for instance
            `("text", "image")` for findings and then an image drawn after them, or
            `(("image", "Draw the follow-up."), ("text", "What has changed?"))`.
        options: all those of `ImageInferer`. `think` asks for reasoning before an answer.
    """

    def __init__(
        self, tokenizer: Tokenizer, *, outputs: Sequence[Output] = ("text", "image"), **options: Any
    ) -> None:
        super().__init__(tokenizer, **options)
        if isinstance(outputs, str) or not outputs:
            raise ValueError(
                f"outputs is {outputs!r}, expected a list such as ('text', 'image'): name at least one."
            )
        pairs = [(output, None) if isinstance(output, str) else tuple(output) for output in outputs]
        for pair in pairs:
            if len(pair) != 2 or pair[0] not in ("text", "image"):
                raise ValueError(
                    f"outputs has {pair[0]!r}, expected 'text', 'image', or a pair of one and an instruction."
                )
        self.outputs: list[tuple[str, str | None]] = pairs  # type: ignore[assignment]

    @torch.no_grad()
    def __call__(  # type: ignore[override]
        self, batch: Sequence[Prompt], network: UniMedVL, *args: Any, **kwargs: Any
    ) -> list[list[Answer | Tensor]]:
        """For each prompt its outputs in order: `Answer`s, and images (3, H, W) in [0, 1].

        Raises:
            ValueError: as `ImageInferer`.
        """
        segmenter = self._segmenter(network)
        prompts = check_batch(batch, "InterleavedInferer")
        if not prompts:
            return []
        drawing = any(kind == "image" for kind, _ in self.outputs)
        segments = [segmenter(prompt, draw=drawing, history=True) for prompt in prompts]
        for n, parts in enumerate(segments):
            self._check_outputs(n, parts)
        grids = [self._grid(network, parts) for parts in segments] if drawing else []
        generators = self._generators(len(prompts))
        branches = Branches(
            network, segmenter, prompts=len(prompts), guidance=self.guidance if drawing else None
        )
        branches.read([self._system(THINK_TO_ANSWER) + parts for parts in segments])
        made: list[list[Answer | Tensor]] = [[] for _ in prompts]
        for place, (kind, instruction) in enumerate(self.outputs):
            if instruction is not None:
                branches.read([segmenter([instruction]) for _ in prompts])
            results: Sequence[Answer | Tensor]
            if kind == "text":
                branches.branch()
                results = answers = self._answers(branches.context, generators, branches.full)
                branches.repeat([torch.tensor(answer.ids, dtype=torch.long) for answer in answers])
            else:
                results = self._draw(branches, grids, generators)
                if place + 1 < len(self.outputs):
                    shown = [segmenter([image], draw=True) for image in results]  # type: ignore[list-item]
                    branches.read([made_here(s) for s in shown])  # a follow-up starts from the scan
            for parts_made, result in zip(made, results, strict=True):
                parts_made.append(result)
        return made

    def _check_outputs(self, n: int, segments: Sequence[Segment]) -> None:
        """Every image to come must have, by its turn, what guidance leaves out."""
        texts, images = _kinds(segments)
        for kind, instruction in self.outputs:
            texts = texts or instruction is not None
            if kind == "image":
                self._check_guidance(n, texts, images)
            texts = texts or kind == "text"


def _kinds(segments: Sequence[Segment]) -> tuple[bool, bool]:
    """Whether there is text, and whether there are images."""
    return any(isinstance(s, Text) for s in segments), any(isinstance(s, View | Canvas) for s in segments)


def _is_number(given: Any) -> bool:
    return isinstance(given, Real) or isinstance(given, Tensor) and given.ndim == 0
