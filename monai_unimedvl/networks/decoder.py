# SPDX-License-Identifier: Apache-2.0
"""The transformer with two experts and joint attention (Qwen2.5 shape, after BAGEL, arXiv 2505.14683).

There is one forward for training, prefill, decoding and guidance; a cache is an argument.
  L tokens   D hidden size   H heads   K key-value heads   E head size   S samples   N cached tokens
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.networks.attention import attend
from monai_unimedvl.networks.backends import window
from monai_unimedvl.networks.cache import KVCache, Past, attend_cached
from monai_unimedvl.networks.compiling import chosen
from monai_unimedvl.networks.layers import PerExpert, RMSNorm, SwiGLU, rotary, rotate
from monai_unimedvl.sequence import Plan, Routes

__all__ = ["Attention", "Decoder", "KVCache", "Layer", "attend"]

Rope = tuple[Tensor, Tensor]


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
        self.fast: Any = None  # see `make_fast`

    def forward(self, x: Tensor, plan: Plan, rope: Rope, past: Past | None) -> Tensor:
        """(L, D) -> (L, D)"""
        if self.fast is not None and not torch.is_grad_enabled() and self.fast.ready(plan.routes):
            q, k, v = self.fast.before(x, plan.routes, rope, plan.arrival)
            y = attend(q, k, v, plan.blocks) if past is None else attend_cached(q, k, v, *past)
            return self.fast.after(x, y, plan.routes, plan.home)
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
        self.compiled_words = False  # see `compile_words`
        self.backend = "sdpa"  # see `use_backend`
        self.fast_head: Any = None  # see `make_fast`
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
            cache.hold({s: block.length for block in plan.blocks for s in block.samples}, self.max_context)
        windows: Sequence[Any] | None = None if cache is None else cache.windows(plan.blocks)
        if self.backend != "sdpa":
            other = window(self.backend, plan, cache)
            windows = windows if other is None else [other]
        with torch.set_grad_enabled(cache is None and torch.is_grad_enabled()):
            for n, layer in enumerate(self.layers):
                x = layer(x, plan, rope, None if windows is None else (windows, n))
            x = self.norm(x, plan.routes)
        if cache is not None and keep:
            cache.advance(plan)
        return x

    def logits(self, hidden: Tensor) -> Tensor:
        """(..., D) -> (..., vocabulary)"""
        if self.fast_head is not None and hidden.dim() == 2 and not torch.is_grad_enabled():
            found: Tensor | None = self.fast_head(hidden)
            if found is not None:
                return found
        return F.linear(hidden, self.embed.weight) if self.head is None else self.head(hidden)
