# SPDX-License-Identifier: Apache-2.0
"""The velocity of drawings under guidance: which branches are computed, and which of them in one forward.

Small drawings are bound by reading weights and by calls: their branches share a forward. Large ones fill
every matrix product alone, and together they only push each other out of the processor's caches.
  N drawings   Z latent tokens of all drawings   C numbers a latent token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers.context import Context
from monai_unimedvl.networks.starts import based
from monai_unimedvl.sequence import Canvas, PackedSequence, pack

TOGETHER = 1024  # latent tokens of several branches in one forward at most; tests/benchmarks/branches.py


class Guided:
    """Called with x (Z, C) and a time: the guided velocity (Z, C) of all drawings.

    A branch that has read the same as one before it is not computed again: the reference's text-to-image
    compares with a context "without images" that is the full one.

    Args:
        context, grids, together, starts: see `flow_steps`.
        times: at which it will be called.

    Raises:
        ValueError: guidance needs a branch that the context does not have.
    """

    def __init__(
        self,
        context: Context,
        grids: Sequence[tuple[int, int]],
        guidance: Guidance,
        *,
        times: Sequence[float],
        together: int = 1,
        starts: Sequence[Tensor | None] | None = None,
    ) -> None:
        count, needed = len(grids), 1 + max(sum(guidance.uses(t)) for t in times)
        if len(context) * together < count * needed:
            raise ValueError(
                f"Guidance(text={guidance.text}, image={guidance.image}) compares {needed} contexts a "
                f"drawing, got {len(context)} for {count // together} drawings: read the branches too, or "
                "lower the scales to 1."
            )
        self.context, self.grids, self.guidance = context, list(grids), guidance
        self.together, self.starts = together, list(starts or [None] * count)
        self.lengths = [h * w for h, w in grids]
        self.at_once = max(1, TOGETHER // max(1, sum(self.lengths)))  # branches of a forward
        self.first = [self._first(branch) for branch in range(needed)]  # the branch that says the same
        self.packs: dict[tuple[int, ...], PackedSequence] = {}

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """x (Z, C) at time t -> (Z, C)"""
        branches = range(1 + sum(self.guidance.uses(t)))
        computed = sorted({self.first[branch] for branch in branches})
        found: dict[int, Sequence[Tensor]] = {}
        for i in range(0, len(computed), self.at_once):
            group = tuple(computed[i : i + self.at_once])
            if group not in self.packs:
                self.packs[group] = self._pack(group, x)
            latents = torch.cat([x] * len(group))  # (len(group) * Z, C)
            seq = self.packs[group].with_latents(latents, latents.new_full((1,), t, dtype=torch.float32))
            velocity = self.context.network(seq, self.context.cache, keep=False).velocity.to(x.dtype)
            each = velocity.chunk(len(group))
            found |= {branch: part.split(self.lengths) for branch, part in zip(group, each, strict=True)}
        parts = [found[self.first[branch]] for branch in branches]
        parts += [(None,) * len(self.grids)] * (3 - len(parts))  # type: ignore[list-item]
        return torch.cat([self.guidance.combine(*branch) for branch in zip(*parts, strict=True)])

    def _pack(self, branches: Sequence[int], x: Tensor) -> PackedSequence:
        """Noisy canvases in the samples of these branches, `together` in each; the others are left out."""
        context, groups = self.context, len(self.grids) // self.together
        samples: list[list[Canvas]] = [[] for _ in range(len(context))]
        parts = zip(self.grids, x.split(self.lengths), self.starts, strict=True)
        for i, (grid, part, start) in enumerate(parts):
            for branch in branches:
                canvas = Canvas(grid, part, noisy=True, base=start, joined=i % self.together > 0)
                if branch == 2:  # the one without images starts from none
                    canvas = replace(canvas, base=None)
                samples[branch * groups + i // self.together].append(canvas)
        from_past = [based(canvases, past) for canvases, past in zip(samples, context.bases, strict=True)]
        return pack(from_past, context.marks, start=context.positions).to(x.device)

    def _first(self, branch: int) -> int:
        """The first branch whose samples hold the same as those of this one."""
        groups = len(self.grids) // self.together
        return next(
            other
            for other in range(branch + 1)
            if other == branch
            or all(self._same(other * groups + i, branch * groups + i) for i in range(groups))
        )

    def _same(self, one: int, other: int) -> bool:
        """Whether two samples of the context have the same past, and a drawing in them would start alike."""
        context, cache = self.context, self.context.cache
        starts = context.network.prediction == "image" and (
            any(start is not None for start in self.starts) or context.bases[one] or context.bases[other]
        )
        n = cache.lengths[one]
        if starts or n != cache.lengths[other] or cache.positions[one] != cache.positions[other]:
            return False
        return all(torch.equal(x[:, one, :, :n], x[:, other, :, :n]) for x in (cache.keys, cache.values))
