# SPDX-License-Identifier: Apache-2.0
"""Muon for the matrices inside layers, AdamW for everything else, behind one optimiser; and its schedule."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

MATRICES = ("decoder.layers.", "vision.layers.", "connector.")


class MuonAdamW(torch.optim.Optimizer):
    """torch's Muon and AdamW as one, so that trainers, schedulers and checkpoints see a single optimiser.

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
        self.parts: list[torch.optim.Optimizer] = [
            torch.optim.Muon(
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
