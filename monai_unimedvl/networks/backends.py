# SPDX-License-Identifier: Apache-2.0
"""Other roads to the same attention, for accelerators: FlexAttention, and kernels of variable length.

The usual one calls torch's scaled-dot-product attention sample by sample and part by part, which is the
fastest on a CPU. These take a whole pack in one or two calls: `flex` asks `visible`, the one rule, about
every pair and leaves out blocks of pairs that are hidden; `varlen` hands each image, and the words between
two, to flash attention as a sequence of its own with the keys that it sees.
  L tokens   N keys of all samples, past ones first in each   H heads   K key-value heads   E head size
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from monai_unimedvl.networks.attention import softmax_attention
from monai_unimedvl.networks.cache import KVCache
from monai_unimedvl.sequence import Block, Layout, Part, Plan, visible

BACKENDS = ("sdpa", "flex", "varlen")


def use_backend(network: nn.Module, backend: str) -> nn.Module:
    """The same network; its decoder attends by the named backend.

    Single words keep the usual road (they have one row each), and so does the vision encoder. `flex` is
    compiled on CUDA and plain on a CPU, where it has no gradients: training there keeps the usual road.
    `varlen` is fast on CUDA in half precision, elsewhere it is the same sequences one after the other.

    Raises:
        ValueError: an unknown backend, or no decoder.
    """
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}, expected one of {', '.join(BACKENDS)}: use one of them.")
    decoders = [module for module in network.modules() if hasattr(module, "backend")]
    if not decoders:
        raise ValueError(f"use_backend found no decoder in {type(network).__name__}: pass a UniMedVL.")
    for decoder in decoders:
        decoder.backend = backend  # type: ignore[assignment]
    return network


def window(backend: str, plan: Plan, cache: KVCache | None) -> Flex | Varlen | None:
    """How the tokens of a pack meet each other and their past; None where the usual road is taken."""
    if backend == "sdpa" or not len(plan.layout.sample) or all(block.length == 1 for block in plan.blocks):
        return None
    if (
        backend == "flex"
        and cache is None
        and plan.layout.sample.device.type == "cpu"
        and torch.is_grad_enabled()
    ):
        return None
    keys = Keys(plan, cache)
    return Flex(plan, keys) if backend == "flex" else Varlen(plan, keys)


class Keys:
    """Keys and values of all samples of a pack one after another, each sample's past first.

    Args:
        cache: None where there is no past; new ones are written into it.
    """

    def __init__(self, plan: Plan, cache: KVCache | None) -> None:
        self.cache = cache
        # sample, tokens of its past, rows of the new ones, first key among all
        self.runs: list[tuple[int, int, slice, int]] = []
        at, first = 0, 0
        for block in plan.blocks:
            for s in block.samples:
                past = 0 if cache is None else cache.lengths[s]
                self.runs.append((s, past, slice(at, at + block.length), first))
                at, first = at + block.length, first + past + block.length

    def gather(self, n: int, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """New ones of layer n, (L, K, E) each in order of reading -> (N, K, E) each."""
        if self.cache is None:
            return k, v
        found: list[tuple[Tensor, Tensor]] = []
        for s, past, rows, _ in self.runs:
            end = past + rows.stop - rows.start
            both = []
            for kept, new in ((self.cache.keys, k), (self.cache.values, v)):
                kept[n, s, :, past:end] = new[rows].transpose(0, 1)
                both.append(kept[n, s, :, :end].transpose(0, 1))
            found.append((both[0], both[1]))
        return torch.cat([one for one, _ in found]), torch.cat([two for _, two in found])

    def layout(self, new: Layout) -> Layout:
        """Layout (N,) of the keys, given that of the new tokens in order of reading; the past is earlier."""
        parts: list[list[Tensor]] = [[] for _ in new]
        for s, past, rows, _ in self.runs:
            zero = new.sample.new_zeros(past)
            old = Layout(zero + s, zero - 1, zero, zero - 1, zero.bool())
            for part, before, now in zip(parts, old, new, strict=True):
                part += [before, now[rows]]
        return Layout(*map(torch.cat, parts))


class Flex:
    """FlexAttention over all pairs that `visible` allows."""

    def __init__(self, plan: Plan, keys: Keys) -> None:
        from torch.nn.attention.flex_attention import create_block_mask

        self.keys = keys
        layout = plan.layout
        if plan.arrival is not None:
            layout = Layout(*(x[plan.arrival] for x in layout))
        past = keys.layout(layout)

        def rule(batch: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return visible(Layout(*(x[i] for x in layout)), Layout(*(x[j] for x in past)))

        device = str(layout.sample.device)
        self.mask = create_block_mask(rule, None, None, len(layout.sample), len(past.sample), device=device)

    def attend(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (L, H, E), k and v (L, K, E) -> (L, H*E)"""
        k, v = self.keys.gather(n, k, v)
        q, k, v = (x.transpose(0, 1)[None] for x in (q, k, v))  # (1, H, L, E)
        flex = _flex(q.device.type != "cpu")
        y = flex(q, k, v, block_mask=self.mask, enable_gqa=q.shape[1] > k.shape[1])
        return y[0].transpose(0, 1).flatten(1)


class Varlen:
    """Each part of each sample is a sequence of its own: images see all of theirs, words what came before."""

    def __init__(self, plan: Plan, keys: Keys) -> None:
        self.keys = keys
        device = plan.layout.sample.device
        found: dict[bool, tuple[list[Tensor], list[Tensor]]] = {True: ([], []), False: ([], [])}
        runs = iter(keys.runs)
        for block in plan.blocks:
            for _, past, rows, first in islice(runs, len(block.samples)):
                self._sample(block, first, past, rows.start, found)
        self.groups = [
            (causal, _rows(queries, device), _rows(seen, device))
            for causal, (queries, seen) in found.items()
            if queries
        ]
        order = torch.cat([queries[0] for _, queries, _ in self.groups])
        self.home = torch.empty_like(order)
        self.home[order] = torch.arange(len(order), device=device)

    @staticmethod
    def _sample(
        block: Block, first: int, past: int, row: int, found: dict[bool, tuple[list[Tensor], list[Tensor]]]
    ) -> None:
        parts = block.parts or (Part(block.length, (), block.mask),)
        ends = torch.tensor([0] + [part.length for part in parts]).cumsum(0).tolist()
        for i, part in enumerate(parts):
            seen = [torch.arange(first, first + past)]
            seen += [torch.arange(ends[j], ends[j + 1]) + first + past for j in (*part.sees, i)]
            queries, keys = found[part.mask is not None]
            queries.append(torch.arange(ends[i], ends[i + 1]) + row)
            keys.append(torch.cat(seen))

    def attend(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (L, H, E), k and v (L, K, E) -> (L, H*E)"""
        k, v = self.keys.gather(n, k, v)
        outputs = []
        for causal, (rows, q_ends, q_most), (seen, k_ends, k_most) in self.groups:
            parts = (q[rows], k[seen], v[seen])
            outputs.append(_kernel(parts, q_ends, k_ends, q_most, k_most, causal))
        return torch.cat(outputs)[self.home].flatten(1)


def _rows(parts: Sequence[Tensor], device: torch.device) -> tuple[Tensor, Tensor, int]:
    """Rows of all sequences, where each ends (from 0), and the longest."""
    lengths = torch.tensor([0] + [len(part) for part in parts])
    return torch.cat(list(parts)).to(device), lengths.cumsum(0).int().to(device), int(lengths.max())


def _kernel(
    parts: tuple[Tensor, Tensor, Tensor],
    q_ends: Tensor,
    k_ends: Tensor,
    q_most: int,
    k_most: int,
    causal: bool,
) -> Tensor:
    """Each sequence by itself: q (rows, H, E), k and v (rows, K, E) -> (rows, H, E); causal at the end."""
    q, k, v = parts
    if q.is_cuda and q.dtype in (torch.float16, torch.bfloat16):
        from torch.nn.attention.varlen import varlen_attn

        side = (-1, 0) if causal else (-1, -1)
        y: Any = varlen_attn(
            q, k, v, q_ends, k_ends, q_most, k_most, window_size=side, enable_gqa=q.shape[1] > k.shape[1]
        )
        return y
    outputs = []
    spans = zip(
        q_ends[:-1].tolist(), q_ends[1:].tolist(), k_ends[:-1].tolist(), k_ends[1:].tolist(), strict=True
    )
    for a, b, c, d in spans:
        mask = None
        if causal:
            mask = torch.ones(b - a, d - c, dtype=torch.bool, device=q.device).tril(d - c - (b - a))
        y = softmax_attention(q[None, a:b], k[None, c:d].transpose(1, 2), v[None, c:d].transpose(1, 2), mask)
        outputs.append(y[0].unflatten(-1, (q.shape[1], -1)))
    return torch.cat(outputs)


@lru_cache
def _flex(compiled: bool) -> Any:
    from torch.nn.attention.flex_attention import flex_attention

    return torch.compile(flex_attention, dynamic=True) if compiled else flex_attention
