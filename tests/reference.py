# SPDX-License-Identifier: Apache-2.0
"""Slow obvious twins: the same numbers as the package, written token by token and without its tricks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from monai_unimedvl.networks.decoder import Attention, Decoder
from monai_unimedvl.sequence import Layout


def may_see(layout: Layout, query: int, key: int) -> bool:
    """Whether token `query` attends to token `key`: the rule in words, for one pair."""
    if layout.sample[query] != layout.sample[key]:
        return False
    if layout.span[query] == layout.span[key] and layout.span[key] >= 0:
        return True  # inside one image all see all
    return bool(layout.order[key] <= layout.order[query]) and not bool(layout.noisy[key])


def turned(x: Tensor, position: int, theta: float) -> Tensor:
    """A head (E,) as E/2 complex numbers x_i + i x_(i+E/2), each turned by position / theta^(2i/E)."""
    half = len(x) // 2
    angle = torch.tensor([position * theta ** (-i / half) for i in range(half)], dtype=x.dtype)
    z = torch.complex(x[:half], x[half:]) * torch.polar(torch.ones_like(angle), angle)
    return torch.cat([z.real, z.imag])


def attention(part: Attention, x: Tensor, layout: Layout, experts: list[str], theta: float) -> Tensor:
    """One softmax for every token and head: x (L, D) -> (L, D)."""
    q, k, v = ([getattr(getattr(part, n), e)(row) for row, e in zip(x, experts, strict=True)] for n in "qkv")
    size = part.head_size
    q, k, v = ([row.split(size) for row in rows] for rows in (q, k, v))
    group = len(q[0]) // len(k[0])
    outputs = []
    for i, expert in enumerate(experts):
        heads = []
        for h in range(len(q[i])):
            query = turned(getattr(part.q_norm, expert)(q[i][h]), int(layout.position[i]), theta)
            seen = [j for j in range(len(experts)) if may_see(layout, i, j)]
            keys = [
                turned(getattr(part.k_norm, experts[j])(k[j][h // group]), int(layout.position[j]), theta)
                for j in seen
            ]
            weight = torch.stack([query @ key / size**0.5 for key in keys]).softmax(0)
            heads.append(sum(w * v[j][h // group] for w, j in zip(weight, seen, strict=True)))
        outputs.append(getattr(part.out, expert)(torch.cat(heads)))
    return torch.stack(outputs)


def decoder(network: Decoder, x: Tensor, layout: Layout, experts: list[str]) -> Tensor:
    """States (L, D) of embedded tokens (L, D), each with the name of its expert."""

    def each(twins: nn.Module, rows: Tensor) -> Tensor:
        return torch.stack([getattr(twins, e)(row) for row, e in zip(rows, experts, strict=True)])

    for layer in network.layers:
        x = x + attention(layer.attention, each(layer.norm1, x), layout, experts, network.rope_theta)
        x = x + each(layer.mlp, each(layer.norm2, x))
    return each(network.norm, x)


def guided(v: Tensor, v_text: Tensor, v_image: Tensor, a: float, b: float, renorm: str, low: float) -> Tensor:
    """Guided velocity (Z, C) from those of the full, wordless and imageless contexts.

    BAGEL's rule: u = v_T + a (v - v_T), w = v_I + b (u - v_I); then u or w is shrunk to the norm of v.
    """

    def factor(full: float, now: float) -> float:
        return min(max(full / (now + 1e-8), low), 1.0)

    if a <= 1:
        return v
    u = v_text + a * (v - v_text)
    if renorm == "text_channel":
        u = torch.stack([u[i] * factor(float(v[i].norm()), float(u[i].norm())) for i in range(len(u))])
        return v_image + b * (u - v_image) if b > 1 else u
    w = v_image + b * (u - v_image) if b > 1 else u
    if renorm == "channel":
        return torch.stack([w[i] * factor(float(v[i].norm()), float(w[i].norm())) for i in range(len(w))])
    return w * factor(float(v.norm()), float(w.norm()))
