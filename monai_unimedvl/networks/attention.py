# SPDX-License-Identifier: Apache-2.0
"""Attention over packed samples: one call for samples of one pattern, and nothing that is hidden is computed.

L tokens   B samples   n new tokens of each   N keys   H heads   K key-value heads   E head size
"""

from __future__ import annotations

from typing import TypeAlias

import torch
from torch import Tensor

from monai_unimedvl.networks.layers import scaled_dot_product
from monai_unimedvl.sequence import Block, Part

Mask: TypeAlias = Tensor | str | None  # None sees all; "causal"; or bool


def attend(q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Attention inside each sample: q (L, H, E), k and v (L, K, E) in order of reading -> (L, H*E)."""
    outputs = []
    tokens = [len(block.samples) * block.length for block in blocks]
    parts = zip(*(x.split(tokens) for x in (q, k, v)), strict=True)  # split: its backward is one cat
    for block, part in zip(blocks, parts, strict=True):
        q, k, v = (x.unflatten(0, (len(block.samples), block.length)) for x in part)
        y = _part_by_part(q, k, v, block.parts) if block.parts else _softmax(q, k, v, block.mask)
        outputs.append(y.flatten(0, 1))  # (count * length, H*E)
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs) if outputs else q.flatten(1)


def _part_by_part(q: Tensor, k: Tensor, v: Tensor, parts: tuple[Part, ...]) -> Tensor:
    """q (B, n, H, E), k and v (B, n, K, E) -> (B, n, H*E): what a part cannot see is not computed."""
    queries, keys, values = (x.split([part.length for part in parts], dim=1) for x in (q, k, v))
    outputs = []
    for i, part in enumerate(parts):
        seen = (*part.sees, i)
        k, v = (x[i] if len(seen) == 1 else torch.cat([x[j] for j in seen], dim=1) for x in (keys, values))
        outputs.append(_softmax(queries[i], k, v, part.mask))
    return torch.cat(outputs, dim=1)


def _softmax(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """q (B, n, H, E), k and v (B, N, K, E) -> (B, n, H*E)"""
    return softmax_attention(q, k.transpose(1, 2), v.transpose(1, 2), mask)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """q (B, n, H, E), k and v (B, K, N, E) -> (B, n, H*E)"""
    if q.shape[1] == 1 and not isinstance(mask, str):  # the heads of a group are query rows: no copy of keys
        y = scaled_dot_product(q.view(len(q), k.shape[1], -1, q.shape[3]), k, v, mask)
        return y.reshape(len(q), 1, -1)
    causal = isinstance(mask, str) and bool(q.shape[1] > 1)  # while traced a shape is a tensor
    y = scaled_dot_product(
        q.transpose(1, 2), k, v, None if isinstance(mask, str) else mask,
        is_causal=causal, enable_gqa=bool(q.shape[2] > k.shape[1]),
    )  # fmt: skip
    return y.transpose(1, 2).flatten(2)
