# SPDX-License-Identifier: Apache-2.0
"""Rectified flow on straight lines, after Liu et al. 2022 (arXiv 2209.03003), section 2, and its guidance.

x_t = (1 - t) x + t noise,  velocity = noise - x;  t = 0 is the image, t = 1 is noise.
(MONAI's RFlowScheduler has the opposite velocity sign and keeps times as float16.)
  Z latent tokens   C numbers per token
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

RENORMS = ("global", "channel", "text_channel")


def add_noise(x: Tensor, noise: Tensor, t: Tensor) -> Tensor:
    """x, noise (Z, C), t (Z, 1) in [0, 1] -> (Z, C)"""
    return (1 - t) * x + t * noise


def velocity(x: Tensor, noise: Tensor) -> Tensor:
    """The constant velocity from image x to noise, (Z, C)."""
    return noise - x


def step(x: Tensor, v: Tensor, t: float, t_next: float) -> Tensor:
    """One Euler step from time t down to t_next: (Z, C)."""
    return x - v * (t - t_next)


def shift_time(t: Tensor, shift: float) -> Tensor:
    """Times in [0, 1] moved towards noise when shift > 1: shift t / (1 + (shift - 1) t)."""
    return shift * t / (1 + (shift - 1) * t)


def schedule(steps: int, shift: float = 1.0) -> Tensor:
    """The grid of `steps` network evaluations: (steps + 1,) times from 1 to 0.

    The reference counts points: its num_timesteps = 50 is `schedule(49)`.
    """
    if steps < 1:
        raise ValueError(f"schedule got steps={steps}, expected at least 1: raise steps.")
    return shift_time(torch.linspace(1, 0, steps + 1), shift)


def draw_times(count: int, shift: float = 1.0, generator: torch.Generator | None = None) -> Tensor:
    """Logit-normal training times (count,) in (0, 1), shifted; drawn in float32."""
    return shift_time(torch.randn(count, generator=generator).sigmoid(), shift)


@dataclass(frozen=True)
class Guidance:
    """Classifier-free guidance with two scales, an interval, and three renormalisations.

    Image guidance acts only while text guidance does (as in the reference).

    Args:
        text: weight against the context without its last words; 1 switches guidance off.
        image: weight against the context without images; 1 switches it off.
        interval: guidance acts where interval[0] < t <= interval[1].
        renorm: norm over a sample ("global"), a token ("channel"), or a token before images ("text_channel").
        renorm_min: lower clamp of the renorm factor; 1 switches renorm off.
    """

    text: float = 1.0
    image: float = 1.0
    interval: tuple[float, float] = (0.0, 1.0)
    renorm: str = "global"
    renorm_min: float = 0.0

    def __post_init__(self) -> None:
        if self.renorm not in RENORMS:
            raise ValueError(
                f"Guidance got renorm={self.renorm!r}, expected one of {', '.join(RENORMS)}: use one of them."
            )
        if self.text < 1 or self.image < 1:
            raise ValueError(
                f"Guidance got text={self.text}, image={self.image}, expected at least 1: 1 switches it off."
            )

    def uses(self, t: float) -> tuple[bool, bool]:
        """Whether the context without text, and the one without images, are needed at time t."""
        on = self.interval[0] < t <= self.interval[1] and self.text > 1
        return on, on and self.image > 1

    def combine(self, full: Tensor, without_text: Tensor | None, without_image: Tensor | None) -> Tensor:
        """The guided velocity (Z, C) of one sample; a branch is None where `uses` says so."""
        if without_text is None:
            return full
        guided = without_text + self.text * (full - without_text)
        if self.renorm == "text_channel":
            guided = guided * _shrink(full, guided, self.renorm_min, per_token=True)
        if without_image is not None:
            guided = without_image + self.image * (guided - without_image)
        if self.renorm != "text_channel":
            guided = guided * _shrink(full, guided, self.renorm_min, per_token=self.renorm == "channel")
        return guided


def _shrink(full: Tensor, guided: Tensor, low: float, *, per_token: bool) -> Tensor:
    """|full| / |guided| clamped to [low, 1]: (Z, 1) per token, else a scalar tensor."""
    if per_token:
        before, after = full.norm(dim=-1, keepdim=True), guided.norm(dim=-1, keepdim=True)
    else:
        before, after = full.norm(), guided.norm()
    return (before / (after + 1e-8)).clamp(min=low, max=1.0)
