# SPDX-License-Identifier: Apache-2.0
"""Small parts of the network: twins per expert, feed-forward, rotary and fixed position codes, patches.

L tokens   D hidden size   H heads   E head size
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.sequence import Routes

EXPERTS = ("understanding", "generation")


class PerExpert(nn.Module):
    """Twins of one module; each token goes through its own. Understanding tokens come first in memory.

    Args:
        build: makes one of the twins.
    """

    def __init__(self, build: Callable[[], nn.Module]) -> None:
        super().__init__()
        self.understanding = build()
        self.generation = build()

    def forward(self, x: Tensor, routes: Routes) -> Tensor:
        """x (L, ...) in memory order -> (L, ...)"""
        if routes.generation == 0:
            y = self.understanding(x)
            return y.detach() if routes.detach_understanding else y
        if routes.understanding == 0:
            return self.generation(x)
        read, drawn = x.split([routes.understanding, routes.generation])  # its backward is one cat
        words = self.understanding(read)
        if routes.detach_understanding:
            words = words.detach()
        return torch.cat([words, self.generation(drawn)])


class SwiGLU(nn.Module):
    """down(silu(gate x) * up x), without biases."""

    def __init__(self, hidden_size: int, mlp_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(hidden_size, mlp_dim, bias=False)
        self.up = nn.Linear(hidden_size, mlp_dim, bias=False)
        self.down = nn.Linear(mlp_dim, hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """(L, D) -> (L, D)"""
        return self.down(F.silu(self.gate(x)) * self.up(x))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x^2) + eps) in float32 at least, times a weight."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(..., size) -> (..., size)"""
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


class MLP(nn.Module):
    """fc2(gelu_tanh(fc1 x)), with biases: the connector's shape."""

    def __init__(self, inputs: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(inputs, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(L, inputs) -> (L, outputs)"""
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class TimeEmbed(nn.Module):
    """Flow time in [0, 1] -> (D,): 256 cosines and sines, then two linear layers with SiLU between."""

    frequencies = 128

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(2 * self.frequencies, hidden_size)
        self.fc2 = nn.Linear(hidden_size, hidden_size)

    def forward(self, t: Tensor) -> Tensor:
        """(Z,) -> (Z, D)"""
        return self.fc2(F.silu(self.fc1(self.features(t).to(self.fc1.weight.dtype))))

    @classmethod
    def features(cls, t: Tensor) -> Tensor:
        """(Z,) -> (Z, 256): cos(t f_i) then sin(t f_i), f_i = 10000^(-i/128)."""
        index = torch.arange(cls.frequencies, dtype=torch.float32, device=t.device)
        angle = t.float().unsqueeze(-1) * 10000.0 ** (-index / cls.frequencies)
        return torch.cat([angle.cos(), angle.sin()], dim=-1)


def scaled_dot_product(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: bool
) -> Tensor:
    """torch's attention; halved training on a CPU goes through float32, whose backward is ten times faster.

    Autocast counts: it would halve what comes whole, and rotary codes leave queries and keys whole.
    """
    if q.device.type == "cpu" and q.requires_grad and q.dtype != torch.float64:
        half = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else q.dtype
        if half != torch.float32:
            with torch.autocast("cpu", enabled=False):
                y = F.scaled_dot_product_attention(q.float(), k.float(), v.float(), mask, **options)
                return y.to(half)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, **options)


def rotary(position: Tensor, head_size: int, theta: float) -> tuple[Tensor, Tensor]:
    """cos and signed sin, each (L, 1, E) in float32, of rotary positions (L,), for `rotate`."""
    angle = angles(position, head_size, theta).unsqueeze(1)  # (L, 1, E/2)
    cos, sin = angle.cos(), angle.sin()
    return torch.cat([cos, cos], dim=-1), torch.cat([-sin, sin], dim=-1)


def angles(position: Tensor, head_size: int, theta: float) -> Tensor:
    """(L,) -> (L, E/2), by how much each pair of numbers of a head is turned, in float32."""
    return position.float().unsqueeze(-1) * _frequencies(head_size, theta, position.device)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (L, H, E) turned by its position, "rotate half" style; the minus of that style is in `sin`.

    The halves change places by `flip`: compiled, `roll` works out an index for every number, which is slow.
    """
    swapped = x.unflatten(-1, (2, -1)).flip(-2).flatten(-2)  # (L, H, E)
    return x * cos + swapped * sin


@lru_cache(maxsize=16)
def _frequencies(head_size: int, theta: float, device: torch.device) -> Tensor:
    """(E/2,) in float32"""
    index = torch.arange(0, head_size, 2, dtype=torch.float32, device=device)
    return theta ** (-index / head_size)


def grid_table(side: int, size: int, base: float = 10000.0, scale: float = 1.0) -> Tensor:
    """Fixed sine-cosine codes of a side x side grid, (side*side, size) in float32.

    The first half of the numbers codes the column, the second half the row.

    Args:
        base: longest wavelength over 2 pi; 10000 in the released model, small for small grids.
        scale: amplitude.
    """
    quarter = size // 4
    frequency = base ** (-torch.arange(quarter, dtype=torch.float64) / quarter)
    angle = torch.arange(side, dtype=torch.float64).unsqueeze(-1) * frequency  # (side, size/4)
    axis = torch.cat([angle.sin(), angle.cos()], dim=-1)  # (side, size/2)
    column = axis.unsqueeze(0).expand(side, side, -1)
    row = axis.unsqueeze(1).expand(side, side, -1)
    return (scale * torch.cat([column, row], dim=-1)).flatten(0, 1).float()


def patchify(image: Tensor, patch: int) -> Tensor:
    """(C, H, W) -> (H/patch * W/patch, patch*patch*C), each row in the order row, column, channel."""
    channels, height, width = image.shape
    if height % patch or width % patch:
        raise ValueError(
            f"patchify got an image of {height}x{width}, expected multiples of {patch}: fit it to the grid."
        )
    x = image.view(channels, height // patch, patch, width // patch, patch)
    return x.permute(1, 3, 2, 4, 0).flatten(2).flatten(0, 1)


def unpatchify(tokens: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """The inverse of `patchify`: (h*w, patch*patch*C) -> (C, h*patch, w*patch)"""
    h, w = grid
    x = tokens.view(h, w, patch, patch, -1)
    return x.permute(4, 0, 2, 1, 3).reshape(-1, h * patch, w * patch)
