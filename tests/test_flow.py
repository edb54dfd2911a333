# SPDX-License-Identifier: Apache-2.0
"""Rectified flow and guidance: golden time grids, the slow twin, and MONAI's scheduler."""

from __future__ import annotations

import re
from itertools import product

import pytest
import torch
from golden_support import Golden
from reference import guided
from tiny import numbers
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
