# SPDX-License-Identifier: Apache-2.0
"""SigLIP as a NaViT: packed patches of images of any size, attention inside each image only.

V patches of all images   D hidden size   H heads
"""

from __future__ import annotations

from itertools import groupby

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.networks.compiling import chosen
from monai_unimedvl.networks.layers import scaled_dot_product


class VisionLayer(nn.Module):
    """Pre-norm layer with biases everywhere and gelu (tanh)."""

    def __init__(self, hidden_size: int, mlp_dim: int, num_heads: int, norm_eps: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm1 = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.norm2 = nn.LayerNorm(hidden_size, eps=norm_eps)
        self.q, self.k, self.v, self.out = (nn.Linear(hidden_size, hidden_size) for _ in range(4))
        self.fc1 = nn.Linear(hidden_size, mlp_dim)
        self.fc2 = nn.Linear(mlp_dim, hidden_size)
        self.compiled = False  # see `compile_layers`

    def forward(self, x: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """(V, D) -> (V, D)"""
        before, after = (chosen(part, self.compiled) for part in (VisionLayer.before, VisionLayer.after))
        q, k, v = before(self, x)
        return after(self, x, attend(q, k, v, lengths))

    def before(self, x: Tensor) -> tuple[Tensor, ...]:
        """(V, D) -> q, k and v (V, H, D/H)"""
        h = self.norm1(x)
        return tuple(f(h).unflatten(-1, (self.num_heads, -1)) for f in (self.q, self.k, self.v))

    def after(self, x: Tensor, y: Tensor) -> Tensor:
        """x and what attention found, y, (V, D) -> (V, D)"""
        x = x + self.out(y)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x)), approximate="tanh"))


def attend(q: Tensor, k: Tensor, v: Tensor, lengths: tuple[int, ...]) -> Tensor:
    """Attention inside each image: q, k, v (V, H, D/H) -> (V, D)"""
    runs = [(length, len(list(run))) for length, run in groupby(lengths)]  # of one size: one call
    rows = [length * count for length, count in runs]
    outputs = []
    for (length, count), *parts in zip(runs, *(x.split(rows) for x in (q, k, v)), strict=True):
        each = (part.unflatten(0, (count, length)).transpose(1, 2) for part in parts)
        outputs.append(scaled_dot_product(*each).transpose(1, 2).flatten(2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs)


class Vision(nn.Module):
    """Patches of images -> features.

    Args:
        grid_side: side of the learned position table; an image may have that many patches a side.
    """

    def __init__(
        self,
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        *,
        patch_size: int = 14,
        grid_side: int = 70,
        norm_eps: float = 1e-6,
    ) -> None:
        super().__init__()
        self.config = {
            "hidden_size": hidden_size, "mlp_dim": mlp_dim, "num_layers": num_layers, "num_heads": num_heads,
            "patch_size": patch_size, "grid_side": grid_side, "norm_eps": norm_eps,
        }  # fmt: skip
        self.patch_size, self.grid_side = patch_size, grid_side
        self.patch = nn.Linear(patch_size * patch_size * 3, hidden_size)
        self.position = nn.Embedding(grid_side * grid_side, hidden_size)
        self.layers = nn.ModuleList(
            VisionLayer(hidden_size, mlp_dim, num_heads, norm_eps) for _ in range(num_layers)
        )
        self.norm = nn.LayerNorm(hidden_size, eps=norm_eps)

    def forward(self, patches: Tensor, cells: Tensor, lengths: tuple[int, ...]) -> Tensor:
        """Features (V, D) after the last norm.

        Args:
            patches: (V, p*p*3) in [-1, 1], images one after another.
            cells: (V, 2) row and column of each patch, top left is (0, 0).
            lengths: patches of each image.
        """
        x = self.patch(patches) + self.position(cells[:, 0] * self.grid_side + cells[:, 1])
        for layer in self.layers:
            x = layer(x, lengths)
        return self.norm(x)
