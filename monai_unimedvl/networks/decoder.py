# SPDX-License-Identifier: Apache-2.0
"""The transformer with two experts and joint attention (Qwen2.5 shape, after BAGEL, arXiv 2505.14683).

There is one forward for training, prefill, decoding and guidance; a cache is an argument.
  L tokens   D hidden size   H heads   K key-value heads   E head size   S samples   N cached tokens
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.networks.layers import PerExpert, RMSNorm, SwiGLU, rotary, rotate, scaled_dot_product
from monai_unimedvl.sequence import CAUSAL, Block, Layout, Plan

Rope = tuple[Tensor, Tensor]
LayerCache = tuple[Tensor, Tensor]
Mask: TypeAlias = Tensor | str | None


class KVCache:
    """Keys and values of the past, one slab a sample, preallocated and written in place.

    The past is all visible to its own sample: spans are forgotten once cached; noisy tokens are never kept.

    Args:
        capacity: tokens that one sample can hold; `reserve` enlarges it.
    """

    def __init__(self, decoder: Decoder, samples: int, capacity: int = 256) -> None:
        weight = decoder.embed.weight
        shape = (len(decoder.layers), samples, decoder.num_kv_heads, capacity, decoder.head_size)
        self.keys = torch.zeros(shape, dtype=weight.dtype, device=weight.device)
        self.values = torch.zeros_like(self.keys)
        self.lengths = [0] * samples  # cached tokens
        self.positions = [0] * samples  # next rotary position

    @property
    def capacity(self) -> int:
        return self.keys.shape[3]

    def layout(self) -> Layout:
        """Layout (N,) of what the cache holds, sample by sample, earlier than anything new."""
        sample = torch.cat([torch.full((n,), s) for s, n in enumerate(self.lengths)])
        zero = torch.zeros_like(sample)
        return Layout(sample, zero - 1, zero, zero + CAUSAL, zero.bool())

    def reserve(self, tokens: int) -> None:
        """Make room for at least `tokens` in every sample; doubles, so that growth costs little."""
        if tokens <= self.capacity:
            return
        grown = max(tokens, 2 * self.capacity)
        for name in ("keys", "values"):
            old = getattr(self, name)
            new = old.new_zeros(*old.shape[:3], grown, old.shape[4])
            new[:, :, :, : old.shape[3]] = old
            setattr(self, name, new)

    def advance(self, plan: Plan) -> None:
        """Count the new tokens of a pack as past."""
        for block in plan.blocks:
            for s in block.samples:
                self.lengths[s] += block.length
        for s, position in plan.next_position.items():
            self.positions[s] = position

    def fork(self, samples: Sequence[int]) -> KVCache:
        """A copy that holds the given samples, in that order; a sample may be named more than once."""
        copy = object.__new__(KVCache)
        rows = torch.tensor(list(samples), device=self.keys.device)
        copy.keys, copy.values = self.keys.index_select(1, rows), self.values.index_select(1, rows)
        copy.lengths = [self.lengths[s] for s in samples]
        copy.positions = [self.positions[s] for s in samples]
        return copy


class Attention(nn.Module):
    """Projections and norms per expert; one softmax over everything visible."""

    def __init__(
        self, hidden_size: int, num_heads: int, num_kv_heads: int, *, norm_eps: float, qk_norm: bool
    ) -> None:
        super().__init__()
        self.head_size = hidden_size // num_heads
        narrow = num_kv_heads * self.head_size
        self.q = PerExpert(lambda: nn.Linear(hidden_size, hidden_size))
        self.k = PerExpert(lambda: nn.Linear(hidden_size, narrow))
        self.v = PerExpert(lambda: nn.Linear(hidden_size, narrow))
        self.out = PerExpert(lambda: nn.Linear(hidden_size, hidden_size, bias=False))
        norm = (lambda: RMSNorm(self.head_size, norm_eps)) if qk_norm else nn.Identity
        self.q_norm = PerExpert(norm)
        self.k_norm = PerExpert(norm)

    def forward(self, x: Tensor, plan: Plan, rope: Rope, cache: tuple[LayerCache, KVCache] | None) -> Tensor:
        """(L, D) -> (L, D)"""
        routes = plan.routes
        q = self.q(x, routes).unflatten(-1, (-1, self.head_size))  # (L, H, E)
        k = self.k(x, routes).unflatten(-1, (-1, self.head_size))  # (L, K, E)
        v = self.v(x, routes).unflatten(-1, (-1, self.head_size))
        cos, sin = rope
        q = rotate(self.q_norm(q, routes), cos, sin)
        k = rotate(self.k_norm(k, routes), cos, sin)
        if plan.arrival is not None:
            q, k, v = q[plan.arrival], k[plan.arrival], v[plan.arrival]  # in order of reading
        y = attend(q, k, v, plan.blocks) if cache is None else attend_cached(q, k, v, plan.blocks, *cache)
        if plan.home is not None:
            y = y[plan.home]
        return self.out(y, routes)


class Layer(nn.Module):
    """Pre-norm attention and feed-forward, all twins."""

    def __init__(
        self,
        hidden_size: int,
        mlp_dim: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        norm_eps: float = 1e-6,
        qk_norm: bool = True,
    ) -> None:
        super().__init__()
        self.norm1 = PerExpert(lambda: RMSNorm(hidden_size, norm_eps))
        self.attention = Attention(hidden_size, num_heads, num_kv_heads, norm_eps=norm_eps, qk_norm=qk_norm)
        self.norm2 = PerExpert(lambda: RMSNorm(hidden_size, norm_eps))
        self.mlp = PerExpert(lambda: SwiGLU(hidden_size, mlp_dim))

    def forward(self, x: Tensor, plan: Plan, rope: Rope, cache: tuple[LayerCache, KVCache] | None) -> Tensor:
        """(L, D) -> (L, D)"""
        x = x + self.attention(self.norm1(x, plan.routes), plan, rope, cache)
        return x + self.mlp(self.norm2(x, plan.routes), plan.routes)


class Decoder(nn.Module):
    """Embedding, layers, final norm and head; the embedding and the head exist once.

    Args:
        tied: the head is the embedding.
        max_context: tokens that one sample may hold.
    """

    def __init__(
        self,
        vocab_size: int,
        hidden_size: int,
        mlp_dim: int,
        num_layers: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        rope_theta: float = 1e6,
        norm_eps: float = 1e-6,
        tied: bool = False,
        qk_norm: bool = True,
        max_context: int = 32768,
    ) -> None:
        super().__init__()
        if hidden_size % num_heads or num_heads % num_kv_heads:
            raise ValueError(
                f"Decoder got hidden_size={hidden_size}, num_heads={num_heads}, num_kv_heads={num_kv_heads}, "
                "expected each to divide the one before it: change the sizes."
            )
        self.config = {
            "vocab_size": vocab_size, "hidden_size": hidden_size, "mlp_dim": mlp_dim,
            "num_layers": num_layers, "num_heads": num_heads, "num_kv_heads": num_kv_heads,
            "rope_theta": rope_theta, "norm_eps": norm_eps, "tied": tied, "qk_norm": qk_norm,
            "max_context": max_context,
        }  # fmt: skip
        self.num_kv_heads, self.head_size = num_kv_heads, hidden_size // num_heads
        self.rope_theta, self.max_context = rope_theta, max_context
        self.embed = nn.Embedding(vocab_size, hidden_size)
        self.layers = nn.ModuleList(
            Layer(hidden_size, mlp_dim, num_heads, num_kv_heads, norm_eps=norm_eps, qk_norm=qk_norm)
            for _ in range(num_layers)
        )
        self.norm = PerExpert(lambda: RMSNorm(hidden_size, norm_eps))
        self.head = None if tied else nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(self, x: Tensor, plan: Plan, cache: KVCache | None = None, keep: bool = True) -> Tensor:
        """States after the final norm.

        Args:
            x: (L, D) embedded tokens in memory order.
            cache: the past of the samples; new keys and values are written into it.
            keep: count the new tokens as past; False leaves the cache as it was.

        Raises:
            ValueError: a sample outgrows `max_context`, or a noisy canvas was to be kept.
        """
        cos, sin = rotary(plan.layout.position, self.head_size, self.rope_theta)
        rope = cos.to(x.dtype), sin.to(x.dtype)
        if cache is not None:
            if keep and plan.routes.generation and bool(plan.layout.noisy.any()):
                raise ValueError(
                    "A noisy canvas cannot be kept in the cache, later tokens would see it: read it with "
                    "keep=False, and its clean latents once it is drawn."
                )
            past = {s: cache.lengths[s] for block in plan.blocks for s in block.samples}
            longest = max((past[s] + block.length for block in plan.blocks for s in block.samples), default=0)
            if longest > self.max_context:
                raise ValueError(
                    f"The prompt and answer hold {longest} tokens, expected at most {self.max_context} "
                    "in the context of this model: shorten the text, or give fewer or smaller images."
                )
            cache.reserve(longest)
        for layer, slot in zip(self.layers, self._slots(cache), strict=True):
            x = layer(x, plan, rope, slot)
        if cache is not None and keep:
            cache.advance(plan)
        return self.norm(x, plan.routes)

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary)"""
        return F.linear(hidden, self.embed.weight) if self.head is None else self.head(hidden)

    def _slots(self, cache: KVCache | None) -> Iterator[tuple[LayerCache, KVCache] | None]:
        for n in range(len(self.layers)):
            yield None if cache is None else ((cache.keys[n], cache.values[n]), cache)


def attend(q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...]) -> Tensor:
    """Attention inside each sample: q (L, H, E), k and v (L, K, E) in order of reading -> (L, H*E)."""
    outputs, at = [], 0
    for block in blocks:
        count, length = len(block.samples), block.length
        rows = slice(at, at + count * length)
        at += count * length
        each = [x[rows].unflatten(0, (count, length)).transpose(1, 2) for x in (q, k, v)]
        y = _softmax_attention(each[0], each[1], each[2], block.mask)  # (count, H, length, E)
        outputs.append(y.transpose(1, 2).flatten(2).flatten(0, 1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs) if outputs else q.flatten(1)


def attend_cached(
    q: Tensor, k: Tensor, v: Tensor, blocks: tuple[Block, ...], slot: LayerCache, cache: KVCache
) -> Tensor:
    """Attention over the past and the new tokens of each sample; writes the new ones behind the past."""
    keys, values = slot
    outputs, at = [], 0
    for block in blocks:
        past = [cache.lengths[s] for s in block.samples]
        if block.length == 1 and len(past) > 1:
            rows = slice(at, at + len(past))
            outputs.append(_decode_together(q[rows], k[rows], v[rows], block.samples, past, slot))
            at += len(past)
            continue
        for s, before in zip(block.samples, past, strict=True):
            rows, end = slice(at, at + block.length), before + block.length
            at += block.length
            keys[s, :, before:end] = k[rows].transpose(0, 1)
            values[s, :, before:end] = v[rows].transpose(0, 1)
            mask = _with_past(block.mask, before, block.length, q.device)
            y = _softmax_attention(
                q[rows].transpose(0, 1)[None], keys[s, None, :, :end], values[s, None, :, :end], mask
            )
            outputs.append(y[0].transpose(0, 1).flatten(1))
    return outputs[0] if len(outputs) == 1 else torch.cat(outputs) if outputs else q.flatten(1)


def _decode_together(
    q: Tensor, k: Tensor, v: Tensor, samples: tuple[int, ...], past: list[int], slot: LayerCache
) -> Tensor:
    """One new token for each of several samples in one call: q (B, H, E) -> (B, H*E)."""
    keys, values = slot
    at, before = torch.tensor(samples, device=q.device), torch.tensor(past, device=q.device)
    keys[at, :, before], values[at, :, before] = k, v
    longest = max(past) + 1
    everyone = list(samples) == list(range(keys.shape[0]))
    keys = keys[:, :, :longest] if everyone else keys[at, :, :longest]
    values = values[:, :, :longest] if everyone else values[at, :, :longest]
    mask = None
    if min(past) + 1 < longest:
        mask = (torch.arange(longest, device=q.device) <= before.unsqueeze(-1))[:, None, None]
    return _softmax_attention(q.unsqueeze(2), keys, values, mask).flatten(1)


def _with_past(mask: Mask, past: int, length: int, device: torch.device) -> Mask:
    """The mask of new tokens (length, length) widened by a past that is all visible."""
    if mask is None or past == 0 or length == 1:
        return mask
    new = torch.ones(length, length, dtype=torch.bool, device=device).tril() if mask == "causal" else mask
    return torch.cat([torch.ones(length, past, dtype=torch.bool, device=device), new], dim=1)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
    """q (B, H, n, E), k and v (B, K, N, E) -> (B, H, n, E)"""
    groups = q.shape[1] // k.shape[1]
    if q.shape[2] == 1 and groups > 1 and (mask is None or isinstance(mask, Tensor)):
        y = scaled_dot_product(q.squeeze(2).unflatten(1, (-1, groups)), k, v, mask)
        return y.flatten(1, 2).unsqueeze(2)  # the heads of a group are query rows: no copy of keys
    causal = isinstance(mask, str) and q.shape[2] > 1
    return scaled_dot_product(
        q, k, v, None if isinstance(mask, str) else mask, is_causal=causal, enable_gqa=groups > 1
    )
