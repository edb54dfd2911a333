# SPDX-License-Identifier: Apache-2.0
"""Machines that are slow in bfloat16 train in float32, to the same effect."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.testing import assert_close

from monai_unimedvl.bundle import models
from monai_unimedvl.training import optimizer, precision
from monai_unimedvl.training.optimizer import MuonAdamW
from monai_unimedvl.training.precision import Muon, mixed, multiplies_bfloat16, orthogonal
from monai_unimedvl.training.settings import Settings

Able = Callable[..., None]


@pytest.fixture
def able(monkeypatch: pytest.MonkeyPatch) -> Able:
    """Lets the CPU have some instructions and no others."""

    def pretend(*names: str) -> None:
        monkeypatch.setattr(
            torch.cpu, "get_capabilities", lambda: {"avx2": True, **dict.fromkeys(names, True)}
        )

    return pretend


@pytest.mark.parametrize("name", ["amx_bf16", "avx512_bf16", "bf16"])
def test_half_is_used_where_a_cpu_multiplies_in_it(able: Able, name: str) -> None:
    able(name)
    assert multiplies_bfloat16() and mixed() == "bf16-mixed" == Settings().forward_precision


def test_other_cpus_train_in_float32_unless_told(able: Able) -> None:
    able("avx512_f")
    assert not multiplies_bfloat16() and mixed("cpu") == "32-true" == Settings().forward_precision
    assert Settings(precision="bf16-mixed").forward_precision == "bf16-mixed"
    assert mixed("cuda:0") == "bf16-mixed" == Settings(device="cuda").forward_precision


def test_a_device_named_auto_is_the_one_that_is_there(able: Able, monkeypatch: pytest.MonkeyPatch) -> None:
    able()
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert mixed("auto") == "32-true"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert mixed("auto") == "bf16-mixed"


@pytest.mark.parametrize(("bundle", "key"), [("nano", "pretrain"), ("released", "train_lora")])
def test_bundles_leave_the_choice_to_the_machine(bundle: str, key: str) -> None:
    config = json.loads(
        (models("unimedvl_nano").parents[1] / f"unimedvl_{bundle}/configs/{key}.json").read_text()
    )
    said = config["train"]["trainer"]["precision"] if key == "pretrain" else config["train#trainer#precision"]
    assert said == {"_target_": "monai_unimedvl.training.precision.mixed", "device": "@device"}


@pytest.mark.parametrize("adjusted", ["match_rms_adamw", "original"])
@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_muon_in_float32_moves_as_torchs_does(shape: tuple[int, int], adjusted: str) -> None:
    generator = torch.Generator().manual_seed(0)
    begin = torch.randn(shape, generator=generator)
    gradients = [torch.randn(shape, generator=generator) for _ in range(4)]

    def moved(kind: type[torch.optim.Muon]) -> tuple[Tensor, dict[str, Any]]:
        p = nn.Parameter(begin.clone())
        optim = kind([p], lr=0.05, weight_decay=0.1, adjust_lr_fn=adjusted)
        for gradient in gradients:
            p.grad = gradient.clone()
            optim.step()
        return p.detach() - begin, optim.state_dict()

    (ours, state), (theirs, other) = moved(Muon), moved(torch.optim.Muon)
    assert (ours - theirs).norm() < 0.02 * theirs.norm()  # torch's products are in bfloat16
    assert state["param_groups"] == other["param_groups"]
    assert_close(state["state"][0]["momentum_buffer"], other["state"][0]["momentum_buffer"])


def test_an_update_has_singular_values_near_one() -> None:
    matrix = torch.randn(20, 50, generator=torch.Generator().manual_seed(1))
    values = torch.linalg.svdvals(
        orthogonal(matrix, steps=5, coefficients=(3.4445, -4.775, 2.0315), eps=1e-7)
    )
    assert 0.5 < values.min() < values.max() < 1.5


def test_the_optimiser_is_chosen_by_the_machine(able: Able, monkeypatch: pytest.MonkeyPatch) -> None:
    network = nn.ModuleDict({"connector": nn.Linear(4, 4)})
    for names, kind in (((), precision.Muon), (("avx512_bf16",), torch.optim.Muon)):
        able(*names)
        assert type(MuonAdamW(network, matrix_lr=0.1, lr=0.1).parts[0]) is kind
    assert optimizer.Muon is precision.Muon
