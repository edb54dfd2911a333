# SPDX-License-Identifier: Apache-2.0
"""Muon and AdamW behind one face: to the bit what torch's two give, also after a checkpoint; the schedule."""

from __future__ import annotations

from copy import deepcopy
from functools import partial
from io import BytesIO

import pytest
import torch
from tiny import tiny_network
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from monai_unimedvl.training.optimizer import MuonAdamW, Rates, warmup_stable_decay
from monai_unimedvl.training.parts import part_of

RATES = {"matrix_lr": 3e-2, "lr": 1e-2, "weight_decay": 0.1}
FACTOR = partial(warmup_stable_decay, warmup=2, total=8, decay=0.5)


def learn(network: nn.Module, optimizers: list[Optimizer], schedules: list[LambdaLR], steps: range) -> None:
    """Steps along gradients that are drawn by step and name."""
    for step in steps:
        generator = torch.Generator().manual_seed(step)
        for p in network.parameters():
            drawn = torch.randn(p.shape, generator=generator, dtype=p.dtype)
            p.grad = drawn if p.requires_grad else None
        for each in (*optimizers, *schedules):
            each.step()


def differing(one: nn.Module, other: nn.Module) -> list[str]:
    """Names of the parameters that are not the same to the bit."""
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    return [name for (name, p), q in pairs if not torch.equal(p, q)]


def test_both_parts_do_what_torchs_own_do_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a CPU that multiplies in bfloat16; for others see test_precision.py."""
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx512_bf16": True})
    network = tiny_network()
    apart, before = deepcopy(network), deepcopy(network)
    inside = [
        name for name, p in network.named_parameters()
        if p.ndim == 2 and name.split(".")[0] in ("decoder", "vision", "connector")
        and not name.startswith(("decoder.embed", "decoder.head", "vision.position", "vision.patch"))
    ]  # fmt: skip
    named = {name: p for name, p in apart.named_parameters() if p.requires_grad}
    muon = torch.optim.Muon(
        [named[name] for name in inside], lr=3e-2, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
    )
    adamw = torch.optim.AdamW(
        [p for name, p in named.items() if name not in inside], lr=1e-2, betas=(0.9, 0.98), weight_decay=0.0
    )
    both = MuonAdamW(network, **RATES)
    learn(network, [both], [LambdaLR(both, FACTOR)], range(8))
    learn(apart, [muon, adamw], [LambdaLR(muon, FACTOR), LambdaLR(adamw, FACTOR)], range(8))
    assert differing(network, apart) == []
    assert set(differing(network, before)) == set(named)


def test_a_resumed_optimizer_goes_on_to_the_bit() -> None:
    straight, broken = tiny_network(), tiny_network()
    optimizer = MuonAdamW(straight, **RATES)
    learn(straight, [optimizer], [LambdaLR(optimizer, FACTOR)], range(8))
    first = MuonAdamW(broken, **RATES)
    schedule = LambdaLR(first, FACTOR)
    learn(broken, [first], [schedule], range(4))
    file = BytesIO()
    torch.save({"optimizer": first.state_dict(), "schedule": schedule.state_dict()}, file)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    second = MuonAdamW(broken, matrix_lr=9.0, lr=9.0, weight_decay=0.9)  # a checkpoint's rates win
    schedule = LambdaLR(second, FACTOR)
    second.load_state_dict(saved["optimizer"])
    schedule.load_state_dict(saved["schedule"])
    learn(broken, [second], [schedule], range(4, 8))
    assert differing(straight, broken) == []


def test_a_copy_of_the_optimizer_is_whole() -> None:
    optimizer = MuonAdamW(network := tiny_network(), **RATES)
    learn(network, [optimizer], [], range(1))
    network, optimizer, kept = *deepcopy((network, optimizer)), network
    learn(network, [optimizer], [], range(1, 2))
    assert differing(network, kept)


def test_a_closure_gives_its_loss_and_its_gradients() -> None:
    network = tiny_network()
    optimizer, before = MuonAdamW(network, **RATES), deepcopy(network)

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = network.latent_in.weight.square().sum()
        loss.backward()
        return loss.detach()

    assert torch.equal(optimizer.step(closure), before.latent_in.weight.square().sum())
    assert differing(network, before) == ["latent_in.weight"]


def test_frozen_parameters_stay_and_nothing_to_train_is_said() -> None:
    network = tiny_network()
    network.vision.requires_grad_(False)
    before = deepcopy(network)
    learn(network, [MuonAdamW(network, **RATES)], [], range(2))
    assert not [name for name in differing(network, before) if name.startswith("vision.")]
    with pytest.raises(ValueError, match="found no matrices or nothing else to train: unfreeze"):
        MuonAdamW(network.requires_grad_(False), **RATES)


def test_the_rate_rises_stays_and_falls_to_nothing() -> None:
    rates = [warmup_stable_decay(step, warmup=4, total=20, decay=0.25) for step in range(22)]
    assert rates == [0.25, 0.5, 0.75, *[1.0] * 13, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0][: len(rates)]
    assert warmup_stable_decay(0, warmup=0, total=5, decay=0.0) == 1.0
    assert warmup_stable_decay(4, warmup=0, total=5, decay=0.0) == 1.0
    assert warmup_stable_decay(0, warmup=0, total=4, decay=1.0) == 1.0
    assert warmup_stable_decay(3, warmup=0, total=4, decay=1.0) == 0.25


def test_adamw_has_a_group_for_each_part_at_its_own_rate() -> None:
    network = tiny_network()
    rates = Rates(optimizer="adamw", lr=1e-3, parts={"vision": 0.1, "heads": 2.0}, weight_decay=0.0)
    optimizer = rates.build(network)
    found = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert found == {
        "vision": 1e-4,
        "connector": 1e-3,
        "understanding": 1e-3,
        "generation": 1e-3,
        "heads": 2e-3,
    }
    by_part = {id(p): part_of(name) for name, p in network.named_parameters() if p.requires_grad}
    grouped = {id(p): group["name"] for group in optimizer.param_groups for p in group["params"]}
    assert grouped == by_part
    assert optimizer.param_groups[0]["betas"] == (0.9, 0.95) and optimizer.param_groups[0]["eps"] == 1e-15
    network.vision.requires_grad_(False)
    assert "vision" not in [group["name"] for group in rates.build(network).param_groups]


def test_after_the_warmup_the_rate_is_constant_or_falls_like_a_cosine() -> None:
    constant = [Rates(schedule="constant", warmup=2).factor(step, 6) for step in range(6)]
    assert constant == [0.5, 1.0, 1.0, 1.0, 1.0, 1.0]
    cosine = [Rates(schedule="cosine", warmup=2, floor=0.1).factor(step, 6) for step in range(8)]
    assert cosine[:3] == [0.5, 1.0, 1.0] and cosine[6] == cosine[7] == pytest.approx(0.1)
    assert cosine[4] == pytest.approx(0.55)
    wsd = [Rates(warmup=4, decay=0.25).factor(step, 20) for step in range(20)]
    assert wsd == [warmup_stable_decay(step, warmup=4, total=20, decay=0.25) for step in range(20)]


@pytest.mark.parametrize(
    "options, said",
    [
        ({"optimizer": "sgd"}, "optimizer='sgd', expected one of muon, adamw"),
        ({"schedule": "linear"}, "schedule='linear', expected one of wsd, constant, cosine"),
        ({"optimizer": "adamw", "parts": {"vit": 1.0}}, "part 'vit', expected some of vision"),
        ({"parts": {"vision": 1.0}}, "use optimizer='adamw'"),
        ({"lr": 0.0}, "lr=0.0"),
        ({"decay": 2.0}, "decay=2.0"),
    ],
)
def test_wrong_rates_are_refused(options: dict[str, object], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        Rates(**options)
