# SPDX-License-Identifier: Apache-2.0
"""What moves the parameters: groups by part, AdamW or Muon with AdamW, and how the rate rises and falls."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from math import cos, pi
from typing import Any

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

from monai_unimedvl.training.parts import PARTS, part_of
from monai_unimedvl.training.precision import Muon, multiplies_bfloat16

OPTIMIZERS = ("muon", "adamw")
SCHEDULES = ("wsd", "constant", "cosine")
MATRICES = ("decoder.layers.", "vision.layers.", "connector.")


@dataclass(frozen=True)
class Rates:
    """An optimiser, its rates, and their course over a run.

    Args:
        optimizer: "muon" (Muon for the matrices inside layers, AdamW for the rest), or "adamw" for all, one
            group a part.
        lr: of AdamW.
        matrix_lr: of Muon.
        parts: of single parts, as a factor on `lr` and `matrix_lr` ({"vision": 0.1}); "adamw" only.
        weight_decay: of all under AdamW, of the matrices under Muon.
        betas, eps: of AdamW; under Muon they are (0.9, 0.98) and torch's eps.
        schedule: after the warm-up "constant", "cosine" down to `floor` of the rate, or "wsd": one, then
            linearly to 0 over the last `decay` share of the steps.
        warmup: steps of linear rise.

    Raises:
        ValueError: an unknown optimiser, schedule or part, or a rate that is not positive.
    """

    optimizer: str = "muon"
    lr: float = 2e-3
    matrix_lr: float = 4e-3
    parts: Mapping[str, float] = field(default_factory=dict)
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.95)  # BAGEL
    eps: float = 1e-15  # BAGEL
    schedule: str = "wsd"
    warmup: int = 100
    decay: float = 0.4
    floor: float = 0.0

    def __post_init__(self) -> None:
        for name, known in (("optimizer", OPTIMIZERS), ("schedule", SCHEDULES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Rates got {name}={getattr(self, name)!r}, expected one of {', '.join(known)}: use one."
                )
        if unknown := sorted(set(self.parts) - set(PARTS)):
            raise ValueError(
                f"Rates got a rate for part {unknown[0]!r}, expected some of {', '.join(PARTS)}: rename it."
            )
        if self.parts and self.optimizer != "adamw":
            raise ValueError(
                f"Rates got parts={dict(self.parts)} with optimizer={self.optimizer!r}, which has one rate "
                "for matrices and one for the rest: use optimizer='adamw'."
            )
        if not (self.lr > 0 and self.matrix_lr > 0 and self.warmup >= 0 and 0 <= self.decay <= 1):
            raise ValueError(
                f"Rates got lr={self.lr}, matrix_lr={self.matrix_lr}, warmup={self.warmup}, "
                f"decay={self.decay}, expected rates above 0, a warm-up from 0 and a share in [0, 1]: "
                "correct them."
            )

    def build(self, network: nn.Module) -> torch.optim.Optimizer:
        """The optimiser of what learns in `network`; AdamW has one group for each part, named after it."""
        if self.optimizer == "muon":
            return MuonAdamW(network, matrix_lr=self.matrix_lr, lr=self.lr, weight_decay=self.weight_decay)
        groups: dict[str, list[nn.Parameter]] = {}
        for name, p in network.named_parameters():
            if p.requires_grad:
                groups.setdefault(part_of(name), []).append(p)
        rows = [
            {"params": groups[part], "lr": self.lr * self.parts.get(part, 1.0), "name": part}
            for part in PARTS
            if part in groups
        ]
        return torch.optim.AdamW(
            rows, lr=self.lr, betas=self.betas, eps=self.eps, weight_decay=self.weight_decay
        )

    def factor(self, step: int, total: int) -> float:
        """What the rate is multiplied with at a step of `total`."""
        if self.schedule == "wsd" or step < self.warmup:
            return warmup_stable_decay(step, warmup=self.warmup, total=total, decay=self.decay)
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup) / max(1, total - self.warmup))
        return self.floor + (1 - self.floor) * 0.5 * (1 + cos(pi * done))

    def course(self, optimizer: torch.optim.Optimizer, total: int) -> LambdaLR:
        """The scheduler, to be stepped after every update."""
        return LambdaLR(optimizer, partial(self.factor, total=total))


class MuonAdamW(torch.optim.Optimizer):
    """Muon and AdamW as one, so that trainers, schedulers and checkpoints see a single optimiser.

    Args:
        network: its trainable parameters; 2-D weights inside layers go to Muon.
        matrix_lr: rate of Muon, whose updates are scaled to AdamW's size.
        lr: rate of AdamW.
        weight_decay: of the matrices alone.

    Raises:
        ValueError: no matrices, or nothing besides them, is trainable.
    """

    def __init__(self, network: nn.Module, *, matrix_lr: float, lr: float, weight_decay: float = 0.0) -> None:
        named = [(n, p) for n, p in network.named_parameters() if p.requires_grad]
        matrices = [p for n, p in named if p.ndim == 2 and n.startswith(MATRICES)]
        chosen = {id(p) for p in matrices}
        others = [p for _, p in named if id(p) not in chosen]
        if not matrices or not others:
            raise ValueError(
                "MuonAdamW found no matrices or nothing else to train: unfreeze layers or use AdamW."
            )
        super().__init__([{"params": matrices, "lr": matrix_lr}, {"params": others, "lr": lr}], {})
        muon = torch.optim.Muon if multiplies_bfloat16(matrices[0].device) else Muon
        self.parts: list[torch.optim.Optimizer] = [
            muon(
                matrices, lr=matrix_lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw"
            ),
            torch.optim.AdamW(others, lr=lr, betas=(0.9, 0.98), weight_decay=0.0),
        ]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:  # type: ignore[override]
        """One update of both; rates are those of this optimiser's groups."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for part, group in zip(self.parts, self.param_groups, strict=True):
            part.param_groups[0]["lr"] = group["lr"]
            part.step()
        return loss

    def __getstate__(self) -> dict[str, Any]:
        """What a copy takes along; torch's own knows nothing of the parts."""
        return {**super().__getstate__(), "parts": self.parts}

    def state_dict(self) -> dict[str, Any]:
        """Both states and the current rates."""
        groups = [{k: v for k, v in g.items() if k != "params"} for g in self.param_groups]
        return {"state": {}, "param_groups": groups, "parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take over what `state_dict` gave."""
        for group, saved in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update(saved)
        for part, saved in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(saved)


def warmup_stable_decay(step: int, *, warmup: int, total: int, decay: float) -> float:
    """Factor of the rate: up over `warmup` steps, one, then down to zero over the last `decay` share."""
    start = total - int(decay * total)
    if step < warmup:
        return (step + 1) / warmup
    if step < start:
        return 1.0
    return max(0.0, (total - step) / max(1, total - start))
