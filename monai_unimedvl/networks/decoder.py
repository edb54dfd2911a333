# SPDX-License-Identifier: Apache-2.0
"""The transformer with two experts and joint attention (Qwen2.5 shape, after BAGEL, arXiv 2505.14683).

There is one forward for training, prefill, decoding and guidance; a cache is an argument.
  L tokens   D hidden size   H heads   K key-value heads   E head size   S samples   N cached tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.networks.compiling import chosen
from monai_unimedvl.networks.layers import PerExpert, RMSNorm, SwiGLU, rotary, rotate, scaled_dot_product
from monai_unimedvl.sequence import CAUSAL, Block, Layout, Part, Plan, Routes

Rope = tuple[Tensor, Tensor]
LayerCache = tuple[Tensor, Tensor]
Mask: TypeAlias = Tensor | str | None
Window: TypeAlias = "Alone | Together"
Past: TypeAlias = "tuple[Sequence[Window], int]"  # and the layer


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

    def windows(self, blocks: Sequence[Block]) -> list[Window]:
        """Where the new tokens of each sample, or of several that say one word each, meet their past."""
        found: list[Window] = []
        at, device = 0, self.keys.device
        for block in blocks:
            past, n = [self.lengths[s] for s in block.samples], block.length
            if n == 1 and len(past) > 1:
                found.append(self._together(block.samples, past, slice(at, at + len(past))))
                at += len(past)
                continue
            for s, before in zip(block.samples, past, strict=True):
                new = [x[:, s, :, before : before + n].transpose(1, 2) for x in (self.keys, self.values)]
                seen = [x[:, s : s + 1, :, : before + n] for x in (self.keys, self.values)]
                views = [x.unbind(0) for x in (*new, *seen)]
                mask = _with_past(block.mask, before, n, device)
                found.append(Alone(slice(at, at + n), views[0], views[1], views[2], views[3], mask))
                at += n
        return found

    def _together(self, samples: tuple[int, ...], past: list[int], rows: slice) -> Together:
        device, longest = self.keys.device, max(past) + 1
        at, before = torch.tensor([samples, past], device=device).unbind(0)
        everyone = samples == tuple(range(len(self.lengths)))
        mask = None
        if min(past) + 1 < longest:
            mask = (torch.arange(longest, device=device) <= before.unsqueeze(-1))[:, None, None]
        layers = list(zip(self.keys, self.values, strict=True))
        return Together(rows, layers, slice(None) if everyone else at, at, before, longest, mask)

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
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, hidden_size // num_heads
        narrow = num_kv_heads * self.head_size
        self.q = PerExpert(lambda: nn.Linear(hidden_size, hidden_size))
        self.k = PerExpert(lambda: nn.Linear(hidden_size, narrow))
        self.v = PerExpert(lambda: nn.Linear(hidden_size, narrow))
        self.out = PerExpert(lambda: nn.Linear(hidden_size, hidden_size, bias=False))
        norm = (lambda: RMSNorm(self.head_size, norm_eps)) if qk_norm else nn.Identity
        self.q_norm = PerExpert(norm)
        self.k_norm = PerExpert(norm)

    def project(self, x: Tensor, routes: Routes, rope: Rope) -> tuple[Tensor, Tensor, Tensor]:
        """(L, D) -> q (L, H, E), k and v (L, K, E), queries and keys turned by their positions."""
        narrow = len(x), self.num_kv_heads, self.head_size
        q = self.q(x, routes).view(len(x), self.num_heads, self.head_size)  # (L, H, E)
        k = self.k(x, routes).view(narrow)  # (L, K, E)
        v = self.v(x, routes).view(narrow)
        q, k = self.q_norm(q, routes), self.k_norm(k, routes)
        return rotate(q, *rope), rotate(k, *rope), v


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
        self.compiled = False  # see `compile_layers`

    def forward(self, x: Tensor, plan: Plan, rope: Rope, past: Past | None) -> Tensor:
        """(L, D) -> (L, D)"""
        before, after = (chosen(part, self.compiled) for part in (Layer.before, Layer.after))
        q, k, v = before(self, x, plan.routes, rope, plan.arrival)
        y = attend(q, k, v, plan.blocks) if past is None else attend_cached(q, k, v, *past)
        return after(self, x, y, plan.routes, plan.home)

    def before(
        self, x: Tensor, routes: Routes, rope: Rope, arrival: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(L, D) in memory order -> q (L, H, E), k and v (L, K, E) in order of reading."""
        q, k, v = self.attention.project(self.norm1(x, routes), routes, rope)
        if arrival is not None:
            q, k, v = (x.index_select(0, arrival) for x in (q, k, v))
        return q, k, v

    def after(self, x: Tensor, y: Tensor, routes: Routes, home: Tensor | None) -> Tensor:
        """x (L, D) in memory order and what attention found, y (L, H*E) in order of reading -> (L, D)"""
        if home is not None:
            y = y.index_select(0, home)
        x = x + self.attention.out(y, routes)
        return x + self.mlp(self.norm2(x, routes), routes)


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
            cache: the past of the samples; new keys and values are written into it. It carries no gradient.
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
        windows = None if cache is None else cache.windows(plan.blocks)
        with torch.set_grad_enabled(cache is None and torch.is_grad_enabled()):
            for n, layer in enumerate(self.layers):
                x = layer(x, plan, rope, None if windows is None else (windows, n))
            x = self.norm(x, plan.routes)
        if cache is not None and keep:
            cache.advance(plan)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary)"""
        return F.linear(hidden, self.embed.weight) if self.head is None else self.head(hidden)


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
    return _softmax_attention(q, k.transpose(1, 2), v.transpose(1, 2), mask)


def attend_cached(q: Tensor, k: Tensor, v: Tensor, windows: Sequence[Window], n: int) -> Tensor:
    """Attention of layer n over the past and the new tokens; writes the new ones behind the past."""
    if len(windows) == 1:
        return windows[0].attend(n, q, k, v)
    outputs = [window.attend(n, q[window.rows], k[window.rows], v[window.rows]) for window in windows]
    return torch.cat(outputs) if outputs else q.flatten(1)


@dataclass(frozen=True)
class Alone:
    """One sample: views of the cache in every layer, made once a forward.

    Args:
        rows: of its new tokens, in order of reading.
        new_keys, new_values: (n, K, E) a layer, where the new ones go.
        keys, values: (1, K, N, E) a layer, the past and the new ones.
    """

    rows: slice
    new_keys: Sequence[Tensor]
    new_values: Sequence[Tensor]
    keys: Sequence[Tensor]
    values: Sequence[Tensor]
    mask: Mask

    def attend(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (n, H, E), k and v (n, K, E) -> (n, H*E)"""
        self.new_keys[n].copy_(k)
        self.new_values[n].copy_(v)
        return _softmax_attention(q.unsqueeze(0), self.keys[n], self.values[n], self.mask).squeeze(0)


@dataclass(frozen=True)
class Together:
    """One new token for each of several samples, in one call.

    Args:
        samples: (B,) numbers in the cache, or a slice where these are all of it.
        at: (B,) the same as numbers; `before`: (B,) tokens of the past.
        mask: (B, 1, 1, N) or None, where their pasts are of one length.
    """

    rows: slice
    layers: Sequence[LayerCache]
    samples: Tensor | slice
    at: Tensor
    before: Tensor
    longest: int
    mask: Tensor | None

    def attend(self, n: int, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, H, E), k and v (B, K, E) -> (B, H*E)"""
        keys, values = self.layers[n]  # (S, K, capacity, E)
        keys[self.at, :, self.before], values[self.at, :, self.before] = k, v
        seen = [x[self.samples, :, : self.longest] for x in (keys, values)]
        return _softmax_attention(q.unsqueeze(1), seen[0], seen[1], self.mask).squeeze(1)


def _with_past(mask: Mask, past: int, length: int, device: torch.device) -> Mask:
    """The mask of new tokens (length, length) widened by a past that is all visible."""
    if mask is None or past == 0 or length == 1:
        return mask
    new = torch.ones(length, length, dtype=torch.bool, device=device).tril() if mask == "causal" else mask
    return torch.cat([torch.ones(length, past, dtype=torch.bool, device=device), new], dim=1)


def _softmax_attention(q: Tensor, k: Tensor, v: Tensor, mask: Mask) -> Tensor:
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
