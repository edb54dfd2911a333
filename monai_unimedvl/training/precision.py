# SPDX-License-Identifier: Apache-2.0
"""In which numbers a machine trains best: bfloat16 only where its processor multiplies in it.

A CPU without such instructions (avx512_bf16, amx_bf16; on ARM bf16) takes each product apart and is many
times slower than in float32 (`tests/benchmarks/LOG.md`).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

NATIVE = ("amx_bf16", "avx512_bf16", "bf16")  # as torch names what a CPU can do


def multiplies_bfloat16(device: str | torch.device = "cpu") -> bool:
    """Whether a device multiplies in bfloat16 by instructions of its own; GPUs count as such.

    Args:
        device: "cpu", "cuda", ..., or "auto" as Lightning has it.
    """
    kind = torch.device("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device
    if torch.device(kind).type != "cpu":
        return True
    can = torch.cpu.get_capabilities()
    return any(can.get(name) for name in NATIVE)


def mixed(device: str | torch.device = "cpu") -> str:
    """ "bf16-mixed" where `multiplies_bfloat16`, else "32-true", as Lightning names them."""
    return "bf16-mixed" if multiplies_bfloat16(device) else "32-true"


class Muon(torch.optim.Muon):
    """torch's Muon with the products of its updates in float32, for CPUs that are slow in bfloat16.

    Jordan 2024, "Muon: an optimizer for hidden layers". State and settings are torch's, so checkpoints fit
    either.
    """

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
        """One update."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            matrices: list[Tensor] = []
            gradients: list[Tensor] = []
            momenta: list[Tensor] = []
            self._init_group(group, matrices, gradients, momenta)
            for p, gradient, momentum in zip(matrices, gradients, momenta, strict=True):
                momentum.lerp_(gradient, 1 - group["momentum"])
                ahead = gradient.lerp(momentum, group["momentum"]) if group["nesterov"] else momentum
                update = orthogonal(
                    ahead, steps=group["ns_steps"], coefficients=group["ns_coefficients"], eps=group["eps"]
                )
                alike = group["adjust_lr_fn"] == "match_rms_adamw"
                scale = 0.2 * math.sqrt(max(p.shape)) if alike else math.sqrt(max(1, p.shape[0] / p.shape[1]))
                p.mul_(1 - group["lr"] * group["weight_decay"])
                p.add_(update.to(p), alpha=-group["lr"] * scale)
        return loss


def orthogonal(matrix: Tensor, *, steps: int, coefficients: tuple[float, float, float], eps: float) -> Tensor:
    """(m, n) -> the same, float32, with singular values near one, by iterations of Newton and Schulz."""
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = (matrix.T if tall else matrix).float()
    x = x / x.norm().clamp(min=eps)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
