# SPDX-License-Identifier: Apache-2.0
"""Rectified flow on straight lines, after Liu et al. 2022 (arXiv 2209.03003), section 2, and its guidance.

x_t = (1 - t) x + t noise,  velocity = noise - x;  t = 0 is the image, t = 1 is noise.
(MONAI's RFlowScheduler has the opposite velocity sign and keeps times as float16.)
  Z latent tokens   C numbers per token
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor

SOLVERS = ("euler", "midpoint", "heun", "ab2", "dpm")
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


def intervals(evaluations: int, solver: str = "euler") -> int:
    """Into how many steps a solver divides the way from noise to image, for at most so many evaluations.

    Raises:
        ValueError: an unknown solver.
    """
    if solver not in SOLVERS:
        raise ValueError(f"solver is {solver!r}, expected one of {', '.join(SOLVERS)}: use one of them.")
    return (evaluations + 1) // 2 if solver in ("midpoint", "heun") else evaluations


@dataclass
class Stepper:
    """Goes from time to time along a velocity; one for each drawing, for it remembers.

    - euler: one evaluation a step, of first order; the reference's.
    - midpoint: the velocity half way; two evaluations a step, of second order.
    - heun: the mean of both ends; two evaluations a step, but one in the last, since t = 0 is never asked.
    - ab2: Adams and Bashforth's, leaning on the velocity before; one evaluation, of second order.
    - dpm: the same in the image that the velocity points to, over the log ratio of image and noise
      (DPM-Solver++ 2M, Lu et al. 2022, arXiv 2211.01095); one evaluation, of second order.

    Args:
        evaluations: at most so many; an odd number ends the midpoint with one step of Euler.
        skip: leave out evaluations (`Skip`), or None. It needs a solver of one evaluation a step.
    """

    solver: str = "euler"
    evaluations: int = 0
    skip: Skip | None = None
    asked: int = 0  # evaluations so far
    past: list[tuple[float, Tensor]] = field(default_factory=list)

    def __post_init__(self) -> None:
        if self.skip is not None and intervals(2, self.solver) != 2:
            raise ValueError(
                f"Skipping evaluations goes with solvers of one a step, got {self.solver!r}: use 'euler', "
                "'ab2' or 'dpm'."
            )

    def __call__(
        self, velocity: Callable[[Tensor, float], Tensor], x: Tensor, t: float, t_next: float
    ) -> Tensor:
        """From time t down to t_next: x (Z, C) -> (Z, C)."""
        single = self.solver == "midpoint" and self.asked + 1 == self.evaluations
        v = self._ask(velocity, x, t)
        if self.solver == "midpoint" and not single:
            middle = (t + t_next) / 2
            return step(x, self._ask(velocity, step(x, v, t, middle), middle), t, t_next)
        if self.solver == "heun" and t_next > 0:
            return step(x, (v + self._ask(velocity, step(x, v, t, t_next), t_next)) / 2, t, t_next)
        if self.solver == "ab2" and self.past:
            t_before, before = self.past[-1]
            return step(x, v + (t - t_next) / (2 * (t_before - t)) * (v - before), *self._keep(t, v, t_next))
        if self.solver == "dpm":
            return self._dpm(x, v, t, t_next)
        return step(x, v, *self._keep(t, v, t_next))

    def _keep(self, t: float, v: Tensor, t_next: float) -> tuple[float, float]:
        self.past = [(t, v)]
        return t, t_next

    def _dpm(self, x: Tensor, v: Tensor, t: float, t_next: float) -> Tensor:
        image = x - t * v
        found = image
        if self.past and self.past[-1][0] < 1 and t_next > 0:
            t_before, before = self.past[-1]
            ratio = (_log_ratio(t) - _log_ratio(t_before)) / (_log_ratio(t_next) - _log_ratio(t))
            found = image + (image - before) / (2 * ratio)
        self.past = [(t, image)]
        return found + t_next / t * (x - found)

    def _ask(self, velocity: Callable[[Tensor, float], Tensor], x: Tensor, t: float) -> Tensor:
        if self.skip is not None and (guess := self.skip.guess(t)) is not None:
            return guess
        self.asked += 1
        v = velocity(x, t)
        if self.skip is not None:
            self.skip.learn(t, v)
        return v


@dataclass
class Skip:
    """Leaves out evaluations whose velocity can be told from those before (a step cache).

    After TaylorSeer (Liu et al. 2025, arXiv 2503.06923) at the network's output: velocities that are left out
    are foretold by a polynomial in t through the last ones. With `tolerance`, after TeaCache (Liu et al.
    2024, arXiv 2411.19108), evaluations are left out while the velocity changes slowly.

    Args:
        every: one of so many evaluations is made (at most so many in a row are foretold, less one).
        order: 0 repeats the last velocity, 1 goes on in a straight line.
        first: evaluations at the start that are always made.
        tolerance: relative change, as foretold by the last two, that may add up before one is made again;
            None leaves out by number alone.

    Raises:
        ValueError: a number out of range.
    """

    every: int = 2
    order: int = 1
    first: int = 2
    tolerance: float | None = None
    known: list[tuple[float, Tensor]] = field(default_factory=list)
    made: int = 0
    left_out: int = 0  # in a row

    def __post_init__(self) -> None:
        for name, good, wanted in (
            ("every", self.every >= 1, "at least 1"),
            ("order", self.order in (0, 1), "0 or 1"),
            ("first", self.first > self.order, f"at least {self.order + 1}, for an order of {self.order}"),
            ("tolerance", self.tolerance is None or self.tolerance >= 0, "0 or more, or None"),
        ):
            if not good:
                raise ValueError(f"Skip got {name}={getattr(self, name)}, expected {wanted}: change it.")

    def fresh(self) -> Skip:
        """The same settings, for another drawing."""
        return Skip(self.every, self.order, self.first, self.tolerance)

    def guess(self, t: float) -> Tensor | None:
        """The velocity (Z, C) at time t, or None where it is to be asked for."""
        if self.made < self.first or self.left_out + 1 >= self.every:
            return None
        (t_before, before), (t_last, v) = self.known[-2:] if len(self.known) > 1 else self.known * 2
        slope = 0.0 if t_last == t_before else (t - t_last) / (t_last - t_before)
        if self.tolerance is not None:
            change = abs(slope) * float((v - before).abs().mean() / (v.abs().mean() + 1e-12))
            if change > self.tolerance:
                return None
        self.left_out += 1
        return v if self.order == 0 else v + slope * (v - before)

    def learn(self, t: float, v: Tensor) -> None:
        """Remember an evaluation."""
        self.known = [*self.known[-1:], (t, v)]
        self.made, self.left_out = self.made + 1, 0


def _log_ratio(t: float) -> float:
    """log(image / noise) at time t in (0, 1)"""
    return math.log((1 - t) / t)


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
