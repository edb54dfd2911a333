# SPDX-License-Identifier: Apache-2.0
"""Every golden case that passes through attention, down every road of it that runs on a CPU."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from golden_support import Golden, reading
from torch import nn

from monai_unimedvl import flow
from monai_unimedvl.inferers import guided
from monai_unimedvl.networks.backends import use_backend
from monai_unimedvl.networks.fast import make_fast
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import pack

ROADS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "varlen": lambda network: use_backend(network, "varlen"),
    "fast": lambda network: make_fast(network, compiled=False),
    "flex": lambda network: use_backend(network, "flex"),
    "compiled": make_fast,
}
SLOW = {"flex": "its masks take seconds to be made", "compiled": "compiling takes a minute"}
SOME = [pytest.param(road, marks=[pytest.mark.slow] if road in SLOW else []) for road in ROADS]


@pytest.fixture(scope="module", params=SOME)
def network(gold: Golden, request: pytest.FixtureRequest) -> UniMedVL:
    """The golden network on one of the roads."""
    return ROADS[request.param](gold.build().requires_grad_(False))  # type: ignore[return-value]


@pytest.mark.parametrize("case", ["text", "vqa", "edit"])
def test_golden_answers_down_every_road(gold: Golden, network: UniMedVL, case: str) -> None:
    gold.check_answer(case, network)


def test_golden_batch_down_every_road(gold: Golden, network: UniMedVL) -> None:
    gold.check_batch(network)


@pytest.mark.parametrize("case", ["t2i", "edit"])
def test_golden_drawings_down_every_road(gold: Golden, network: UniMedVL, case: str) -> None:
    gold.check_drawings(case, network, every=4)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["t2i", "edit"])
def test_all_golden_drawings_down_every_road(gold: Golden, network: UniMedVL, case: str) -> None:
    gold.check_drawings(case, network)


@pytest.mark.slow
@pytest.mark.parametrize("case", ["t2i", "edit"])
def test_golden_drawings_with_every_branch_apart(
    gold: Golden, network: UniMedVL, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guided, "TOGETHER", 1)
    gold.check_drawings(case, network)


@torch.no_grad()
def test_golden_training_pack_down_every_road(gold: Golden, network: UniMedVL) -> None:
    seq = pack(gold.train_samples(), gold.marks)
    times = gold["train.packed_timesteps"].sigmoid()
    times = flow.shift_time(times, gold.cases["train"]["timestep_shift"])
    noised = flow.add_noise(seq.latents, gold["train.flow_noise"], times.unsqueeze(-1))
    hidden = network(seq.with_latents(noised, times)).hidden
    gold.check("train.hidden", hidden[reading(seq)])
