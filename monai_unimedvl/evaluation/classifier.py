# SPDX-License-Identifier: Apache-2.0
"""A small judge of drawn images: which contrast, plane and level. It learns from real training slices alone.

It says whether a drawing carries what its words asked for, no more; its own accuracy on held-out real slices
is printed beside every score it gives.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Judge(nn.Module):
    """Three convolutions and two heads: images (N, 3, H, W) in [0, 1] -> scores of contrasts and planes."""

    def __init__(self, contrasts: Sequence[str], planes: Sequence[str], width: int = 16) -> None:
        super().__init__()
        self.contrasts, self.planes = list(contrasts), list(planes)
        sizes = (3, width, 2 * width, 4 * width)
        self.layers = nn.Sequential()
        for inside, outside in zip(sizes, sizes[1:], strict=False):
            self.layers.extend(
                [nn.Conv2d(inside, outside, 3, 2, 1), nn.GroupNorm(4, outside), nn.ReLU(inplace=True)]
            )
        self.contrast, self.plane = (nn.Linear(4 * width * 16, len(names)) for names in (contrasts, planes))

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """(N, 3, H, W) -> scores (N, contrasts) and (N, planes)"""
        x = self.layers(F.avg_pool2d(images, 2) * 2 - 1)  # (N, 64, H/16, W/16); half the size says enough
        x = F.adaptive_avg_pool2d(x, 4).flatten(1)  # (N, 64 * 16)
        return self.contrast(x), self.plane(x)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the last convolution sees on average: (N, 3, H, W) -> (N, 4 * width)"""
        return self.layers(F.avg_pool2d(images, 2) * 2 - 1).mean((2, 3))  # type: ignore[no-any-return]

    @torch.no_grad()
    def name(self, images: Tensor, batch: int = 256) -> list[tuple[str, str]]:
        """(contrast, plane) of each image (N, 3, H, W)."""
        named = []
        for part in images.split(batch):
            kinds, planes = (scores.argmax(1).tolist() for scores in self(part))
            named += [(self.contrasts[k], self.planes[p]) for k, p in zip(kinds, planes, strict=True)]
        return named


@dataclass(frozen=True)
class Judges:
    """Two judges, one of contrast and plane, one of the level: each learns better alone."""

    kind: Judge
    level: Judge

    def name(self, images: Tensor) -> list[tuple[str, str, str]]:
        """(contrast, plane, level) of each image (N, 3, H, W)."""
        both = zip(self.kind.name(images), self.level.name(images), strict=True)
        return [(contrast, plane, level) for (contrast, plane), (level, _) in both]


def train_judges(images: Tensor, kinds: Sequence[tuple[str, str, str]], *, seed: int = 0) -> Judges:
    """Both judges, trained on real images (N, 3, H, W) and their contrasts, planes and levels."""
    contrasts, planes, levels = ([kind[n] for kind in kinds] for n in range(3))
    return Judges(
        train_judge(images, contrasts, planes, seed=seed), train_judge(images, levels, planes, seed=seed)
    )


def train_judge(
    images: Tensor, contrasts: Sequence[str], planes: Sequence[str], *, epochs: int = 12, seed: int = 0
) -> Judge:
    """A judge trained on real images, rare contrasts drawn more often; the same seed gives the same judge.

    Args:
        images: (N, 3, H, W) in [0, 1].
        contrasts, planes: their N names.

    Raises:
        ValueError: no image, or not one name for each.
    """
    if len(images) == 0 or len(images) != len(contrasts) or len(images) != len(planes):
        raise ValueError(
            f"train_judge got {len(images)} images, {len(contrasts)} contrasts and {len(planes)} planes: "
            "give one of each for every image."
        )
    generator = torch.Generator().manual_seed(seed)
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(seed)
        judge = Judge(sorted(set(contrasts)), sorted(set(planes)))
        kinds = torch.tensor([judge.contrasts.index(name) for name in contrasts])
        places = torch.tensor([judge.planes.index(name) for name in planes])
        chance = (1 / torch.bincount(kinds).float().sqrt())[kinds]  # (N,)
        optimizer = torch.optim.AdamW(judge.parameters(), lr=3e-3, weight_decay=0.02)
        steps = max(1, epochs * len(images) // 64)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
        for _ in range(steps):
            rows = torch.multinomial(chance, 64, replacement=True, generator=generator)
            kind, place = judge(_vary(images[rows], generator))
            loss = F.cross_entropy(kind, kinds[rows]) + F.cross_entropy(place, places[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    return judge.eval().requires_grad_(False)


def _vary(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifted by up to 4 pixels, scaled, brighter or darker, a little noise: (N, 3, H, W) -> (N, 3, H, W)"""
    draw = torch.rand(len(images), 4, generator=generator) * 2 - 1
    matrix = torch.zeros(len(images), 2, 3)
    matrix[:, 0, 0] = matrix[:, 1, 1] = 1 + 0.12 * draw[:, 0]
    matrix[:, :, 2] = 0.12 * draw[:, 1:3]
    grid = F.affine_grid(matrix, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    noise = torch.randn(images.shape, generator=generator)
    return (images * (1 + 0.15 * draw[:, 3]).view(-1, 1, 1, 1) + 0.03 * noise).clamp(0, 1)
