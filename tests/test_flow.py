# SPDX-License-Identifier: Apache-2.0
"""Rectified flow and guidance: golden time grids, the slow twin, and MONAI's scheduler."""

from __future__ import annotations

import re
from itertools import product
from typing import Any

import pytest
import torch
from golden_support import Golden
from reference import guided
from tiny import numbers
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl import flow
from monai_unimedvl.flow import RENORMS, Guidance


def test_golden_time_grids(gold: Golden) -> None:
    names = [name for name in gold.arrays if name.startswith("sched.")]
    assert names
    for name in names:
        points, shift = re.fullmatch(r"sched\.n(\d+)_s([\d.]+)", name).groups()
        gold.check(name, flow.schedule(int(points) - 1, float(shift)), tolerance=1e-6)


def test_steps_along_the_true_velocity_lead_from_noise_to_the_image() -> None:
    x, noise = numbers(5, 4), numbers(5, 4, seed=1)
    times, at = flow.schedule(7, shift=3.0).double(), noise
    assert times[0] == 1 and times[-1] == 0
    for t, t_next in zip(times[:-1], times[1:], strict=True):
        assert_close(at, flow.add_noise(x, noise, t.view(1, 1)), atol=1e-12, rtol=0)
        at = flow.step(at, flow.velocity(x, noise), float(t), float(t_next))
    assert_close(at, x, atol=1e-12, rtol=0)


def test_monai_scheduler_has_the_opposite_velocity_and_the_same_steps() -> None:
    from monai.networks.schedulers import RFlowScheduler

    scheduler = RFlowScheduler(num_train_timesteps=1000)
    scheduler.set_timesteps(4)  # 1000, 750, 500, 250: exact in its float16
    x, noise, ours = numbers(1, 2, 3, 4), numbers(1, 2, 3, 4, seed=1), None
    times = [*scheduler.timesteps.tolist(), 0]
    for t, t_next in zip(times, times[1:], strict=False):
        theirs = scheduler.add_noise(x, noise, torch.tensor([t]))
        ours = flow.add_noise(x, noise, torch.tensor([[t / 1000]], dtype=torch.float64))
        assert_close(ours, theirs, atol=1e-7, rtol=0)  # its times are float32 here
        v = flow.velocity(x, noise)
        stepped, _ = scheduler.step(-v, t, theirs, t_next)
        assert_close(flow.step(ours, v, t / 1000, t_next / 1000), stepped, atol=1e-7, rtol=0)
    assert_close(torch.tensor(times) / 1000, flow.schedule(4), atol=1e-7, rtol=0)


def test_monai_scheduler_shifts_times_by_the_root_of_the_ratio_of_sizes() -> None:
    from monai.networks.schedulers import RFlowScheduler

    scheduler = RFlowScheduler(
        1000,
        use_discrete_timesteps=False,
        use_timestep_transform=True,
        base_img_size_numel=100,
        spatial_dim=2,
    )
    scheduler.set_timesteps(10, input_img_size_numel=900)  # sqrt(900 / 100) = 3
    theirs = scheduler.timesteps.float() / 1000
    assert_close(flow.schedule(10, shift=3.0)[:-1], theirs, atol=5e-4, rtol=0)  # float16 times


@pytest.mark.parametrize("renorm", RENORMS)
def test_guidance_is_the_formula(renorm: str) -> None:
    v, v_text, v_image = (numbers(6, 4, seed=seed) for seed in range(3))
    for a, b, low in product((1.0, 1.5, 4.0), (1.0, 1.5), (0.0, 0.9, 1.0)):
        guidance = Guidance(text=a, image=b, renorm=renorm, renorm_min=low)
        text, image = guidance.uses(0.5)
        ours = guidance.combine(v, v_text if text else None, v_image if image else None)
        assert_close(ours, guided(v, v_text, v_image, a, b, renorm, low), atol=1e-12, rtol=0)


def test_guidance_acts_inside_its_interval_and_images_only_with_words() -> None:
    guidance = Guidance(text=4.0, image=2.0, interval=(0.4, 0.9))
    assert [guidance.uses(t)[0] for t in (0.39, 0.4, 0.41, 0.9, 0.91)] == [False, False, True, True, False]
    assert guidance.uses(0.5) == (True, True)
    assert Guidance(text=4.0).uses(0.5) == (True, False)
    assert Guidance(image=2.0).uses(0.5) == (False, False)  # as in the reference
    v = numbers(2, 3)
    assert guidance.combine(v, None, None) is v


def test_the_renorm_never_makes_a_velocity_longer_than_the_unguided() -> None:
    v, v_text = numbers(6, 4), numbers(6, 4, seed=1)
    by_token = Guidance(text=5.0, renorm="channel").combine(v, v_text, None)
    assert (by_token.norm(dim=-1) <= v.norm(dim=-1) + 1e-9).all()
    assert Guidance(text=5.0).combine(v, v_text, None).norm() <= v.norm() + 1e-9
    free = Guidance(text=5.0, renorm_min=1.0).combine(v, v_text, None)
    assert_close(free, v_text + 5.0 * (v - v_text), atol=1e-12, rtol=0)


def test_training_times_are_logit_normal_and_replay() -> None:
    seeded = [flow.draw_times(4000, generator=torch.Generator().manual_seed(3)) for _ in range(2)]
    assert torch.equal(*seeded)
    logits = seeded[0].logit()
    assert abs(float(logits.mean())) < 0.06 and abs(float(logits.std()) - 1) < 0.04
    shifted = flow.draw_times(4000, 3.0, torch.Generator().manual_seed(3))
    assert_close(shifted, flow.shift_time(seeded[0], 3.0))
    assert (shifted > seeded[0]).all()  # towards noise


def test_impossible_settings_get_one_line() -> None:
    with pytest.raises(ValueError, match="steps=0, expected at least 1"):
        flow.schedule(0)
    with pytest.raises(ValueError, match="renorm='max', expected one of global, channel, text_channel"):
        Guidance(renorm="max")
    with pytest.raises(ValueError, match=r"text=0.5, image=1.0, expected at least 1"):
        Guidance(text=0.5)
    with pytest.raises(ValueError, match="image=0"):
        Guidance(image=0)


MEAN, SPREAD = numbers(3, 4), 0.3


def exact(x: Tensor, t: float) -> Tensor:
    """The velocity of images that are normal around MEAN: E[noise - image | x_t]"""
    variance = (1 - t) ** 2 * SPREAD**2 + t**2
    image = MEAN + (1 - t) * SPREAD**2 / variance * (x - (1 - t) * MEAN)
    return (x - image) / t


def solved(solver: str, evaluations: int, **options: Any) -> tuple[Tensor, int]:
    """Where it ends, and how often the velocity was asked for; t stops at 0.02, for 1/t is of no order."""
    asked = []

    def velocity(x: Tensor, t: float) -> Tensor:
        asked.append(t)
        return exact(x, t)

    x, stepper = numbers(3, 4, seed=1), flow.Stepper(solver, evaluations, **options)
    times = torch.linspace(0.98, 0.02, flow.intervals(evaluations, solver) + 1, dtype=torch.float64).tolist()
    for t, t_next in zip(times, times[1:], strict=False):
        x = stepper(velocity, x, t, t_next)
    assert stepper.asked == len(asked)
    return x, len(asked)


@pytest.mark.parametrize(
    "solver, order", [("euler", 1), ("midpoint", 2), ("heun", 2), ("ab2", 2), ("dpm", 2)]
)
def test_the_error_of_a_solver_shrinks_by_its_order(solver: str, order: int) -> None:
    truth, _ = solved("midpoint", 20_000)
    errors = [float((solved(solver, n)[0] - truth).norm()) for n in (200, 400)]
    assert 0.75 * 2**order <= errors[0] / errors[1] <= 10
    assert errors[0] < (0.1 if order == 1 else 0.01)


@pytest.mark.parametrize("solver", flow.SOLVERS)
@pytest.mark.parametrize("evaluations", [1, 2, 3, 8])
def test_no_solver_asks_more_often_than_it_may_or_at_the_image(solver: str, evaluations: int) -> None:
    times = flow.schedule(flow.intervals(evaluations, solver), 3.0).tolist()
    asked, stepper, x = [], flow.Stepper(solver, evaluations), numbers(3, 4, seed=1)
    for t, t_next in zip(times, times[1:], strict=False):
        x = stepper(lambda x, t: asked.append(t) or exact(x, t), x, t, t_next)
    assert 0 < len(asked) <= evaluations and min(asked) > 0
    assert len(asked) == evaluations or solver == "heun"
    if evaluations == 1:
        assert_close(x, MEAN, atol=1e-6, rtol=0)  # from noise alone the mean is all there is to see


def test_heun_and_dpm_are_those_of_diffusers() -> None:
    from diffusers import DPMSolverMultistepScheduler, FlowMatchHeunDiscreteScheduler

    theirs = FlowMatchHeunDiscreteScheduler(shift=1.0)
    theirs.set_timesteps(6)
    sigmas = [float(s) for s in theirs.sigmas[::2]]  # each twice, and 0 at the end
    x = numbers(1, 3, 4, seed=1)
    for t in theirs.timesteps:
        x = theirs.step(exact(x[0], float(t) / 1000)[None], t, x).prev_sample
    ours, stepper = numbers(1, 3, 4, seed=1)[0], flow.Stepper("heun", 11)
    times = [*sorted(set(sigmas), reverse=True)]
    times = times if times[-1] == 0 else [*times, 0.0]
    for t, t_next in zip(times, times[1:], strict=False):
        ours = stepper(exact, ours, t, t_next)
    assert_close(ours, x[0], atol=1e-5, rtol=0)

    dpm = DPMSolverMultistepScheduler(
        use_flow_sigmas=True, prediction_type="flow_prediction", algorithm_type="dpmsolver++",
        solver_type="midpoint", lower_order_final=True, final_sigmas_type="zero",
    )  # fmt: skip
    dpm.set_timesteps(6)
    sigmas = [float(s) for s in dpm.sigmas]
    x = numbers(1, 3, 4, seed=1)
    for t, sigma in zip(dpm.timesteps, sigmas, strict=False):
        x = dpm.step(exact(x[0], sigma)[None], t, x).prev_sample
    ours, stepper = numbers(1, 3, 4, seed=1)[0], flow.Stepper("dpm", 6)
    for t, t_next in zip(sigmas, sigmas[1:], strict=False):
        ours = stepper(exact, ours, t, t_next)
    assert_close(ours, x[0], atol=1e-5, rtol=0)


def test_what_is_left_out_is_foretold() -> None:
    whole, asked = solved("euler", 200)
    for skip, most, error in (
        (flow.Skip(every=1), 200, 1e-12),
        (flow.Skip(every=2, order=1), 101, 0.02),
        (flow.Skip(every=4, order=0), 52, 0.2),
        (flow.Skip(every=8, order=1, tolerance=0.05), 100, 0.1),
        (flow.Skip(every=8, order=1, tolerance=0.0), 200, 1e-12),
    ):
        x, count = solved("euler", 200, skip=skip.fresh())
        assert float((x - whole).norm()) <= error and count <= most
    line = flow.Skip(every=2)
    line.learn(1.0, torch.tensor([1.0]))
    assert line.guess(0.9) is None  # two are always asked for
    line.learn(0.8, torch.tensor([3.0]))
    assert_close(line.guess(0.7), torch.tensor([4.0]))
    assert line.guess(0.6) is None and line.fresh().known == []


@pytest.mark.parametrize(
    "build, match",
    [
        (lambda: flow.intervals(4, "rk45"), "solver is 'rk45', expected one of euler, midpoint"),
        (lambda: flow.Stepper("heun", skip=flow.Skip()), "solvers of one a step, got 'heun'"),
        (lambda: flow.Skip(every=0), "every=0, expected at least 1"),
        (lambda: flow.Skip(order=2), "order=2, expected 0 or 1"),
        (lambda: flow.Skip(first=1), "first=1, expected at least 2, for an order of 1"),
        (lambda: flow.Skip(tolerance=-1.0), "tolerance=-1.0, expected 0 or more"),
    ],
)
def test_a_solver_out_of_range_gets_one_line(build: Any, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()
