# SPDX-License-Identifier: Apache-2.0
"""The next word of each sample: the numbers of `Decoder.forward`, with little around them.

One word a sample is little work, and calling fifteen modules a layer takes longer than a small layer itself.
So the layers are laid out flat, once for each answer: two functions a layer over bare weights. What is no
plain layer (an adapter, a quantised weight) is called as it is; where someone watches the layers (hooks), the
decoder's own forward runs.

On request (`compile_words`) all of it is one call of our own C++ (see `native`). Where that cannot be had,
the two functions are compiled by torch: one row times a matrix is then a loop over the weights as they lie,
instead of a matrix product that packs them first.
  B samples   D hidden size   H heads   K key-value heads   E head size   V vocabulary
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.networks.cache import KVCache, Window
from monai_unimedvl.networks.compiling import check_compiler, fused
from monai_unimedvl.networks.decoder import Attention, Decoder, Layer
from monai_unimedvl.networks.layers import PerExpert, RMSNorm, SwiGLU, rotary, rotate
from monai_unimedvl.networks.native import Native, native
from monai_unimedvl.networks.quantised import Int8Linear
from monai_unimedvl.sequence import Routes, step

Linear = tuple[Tensor, "Tensor | None", "Tensor | None"]  # weight (N, K), scale (N,) of int8, bias (N,)
Norm = tuple[Tensor, float]
Rope = tuple[Tensor, Tensor]  # (B, 1, E)


class Before(NamedTuple):
    """The parts that lie before attention."""

    norm: nn.Module
    q: nn.Module
    k: nn.Module
    v: nn.Module
    q_norm: nn.Module
    k_norm: nn.Module


class After(NamedTuple):
    """Those that lie behind it."""

    out: nn.Module
    norm: nn.Module
    gate: nn.Module
    up: nn.Module
    down: nn.Module


def compile_words(network: nn.Module) -> nn.Module:
    """The same network; words are decoded by compiled code from the next answer on.

    The first time on a machine a C++ compiler works for some seconds; where our code cannot be built, or the
    weights are not of its kind, torch compiles functions for one row at the first answer, which takes longer.
    Drawing and prompts stay as they are.

    Raises:
        ValueError: no decoder in it, or no C++ compiler for the CPU.
    """
    check_compiler(network)
    decoders = [module for module in network.modules() if isinstance(module, Decoder)]
    if not decoders:
        raise ValueError(f"compile_words found no decoder in {type(network).__name__}: pass a UniMedVL.")
    for decoder in decoders:
        decoder.compiled_words = True
    return network


class NextWord:
    """Scores of the next word, for one word each of some samples of a cache.

    It holds on to the network's weights as they are now: make one for each answer, as `words` does.
    """

    def __init__(self, network: Any) -> None:
        self.network = network
        decoder: Decoder = network.decoder
        self.decoder = decoder
        flat = [parts for layer in decoder.layers if (parts := _flat(layer))]
        whole = len(flat) == len(decoder.layers) and not watched(decoder) and not watched(decoder.norm)
        self.direct = [tuple(map(_direct, (*one, *two))) for one, two in flat] if whole else None
        self.fast = [layer.fast for layer in decoder.layers] if whole else []
        if not all(fast is not None and fast.ready(Routes(1, 0)) for fast in self.fast):
            self.fast = []
        self.norm = decoder.norm.understanding
        self.bare: list[tuple[tuple[Any, ...], tuple[Any, ...]]] | None = None
        self.head: Linear | None = None
        self.native: Native | None = None
        if whole and decoder.compiled_words:
            bare = [found for one, two in flat if (found := _bare(one, two))]
            head = decoder.embed if decoder.head is None else decoder.head
            self.head = (head.weight, None, None) if type(head) is nn.Embedding else _bare_linear(head)
            if len(bare) == len(flat) and self.head is not None and type(self.norm) is RMSNorm:
                self.bare = bare
                self.native = native(decoder, bare, (self.norm.weight, self.norm.eps), self.head)

    @torch.no_grad()
    def __call__(self, ids: Tensor, samples: Sequence[int], cache: KVCache) -> Tensor:
        """Let each of `samples` read one word, ids (B,), and return its scores of the next: (B, V).

        They are float32 at least. The words are past afterwards.

        Raises:
            ValueError: a sample outgrows the context of the model.
        """
        if self.direct is None:
            seq = step(ids, samples, [cache.positions[s] for s in samples])
            return _at_least_float32(self.network.logits(self.network(seq, cache).hidden))
        decoder = self.decoder
        cache.hold(dict.fromkeys(samples, 1), decoder.max_context)
        x = decoder.embed(ids)  # (B, D)
        if self.native is not None:
            return self._counted(self.native(x, samples, cache), samples, cache)
        position = torch.tensor([cache.positions[s] for s in samples], device=ids.device)
        cos, sin = rotary(position, decoder.head_size, decoder.rope_theta)
        window, rope = cache.words(samples), (cos.to(x.dtype), sin.to(x.dtype))
        if self.bare is not None and len(samples) == 1:
            logits = self._compiled(x, window, rope)
        else:
            logits = self._eager(x, window, rope)
        return self._counted(logits, samples, cache)

    @staticmethod
    def _counted(logits: Tensor, samples: Sequence[int], cache: KVCache) -> Tensor:
        """The same, once the words are past."""
        for s in samples:
            cache.lengths[s] += 1
            cache.positions[s] += 1
        return logits

    def _eager(self, x: Tensor, window: Window, rope: Rope) -> Tensor:
        """x (B, D) -> (B, V)"""
        assert self.direct is not None
        size, routes = self.decoder.head_size, Routes(len(x), 0)
        if self.fast:
            for n, fast in enumerate(self.fast):
                q, k, v = fast.before(x, routes, rope, None)
                x = fast.after(x, window.attend(n, q, k, v), routes, None)
            return _at_least_float32(self.decoder.logits(self.norm(x)))
        for n, (norm1, q_, k_, v_, q_norm, k_norm, out, norm2, gate, up, down) in enumerate(self.direct):
            h = norm1(x)
            q, k, v = (linear(h).unflatten(-1, (-1, size)) for linear in (q_, k_, v_))
            q, k = rotate(q_norm(q), *rope), rotate(k_norm(k), *rope)
            x = x + out(window.attend(n, q, k, v))
            h = norm2(x)
            x = x + down(F.silu(gate(h)) * up(h))
        return _at_least_float32(self.decoder.logits(self.norm(x)))

    def _compiled(self, x: Tensor, window: Window, rope: Rope) -> Tensor:
        """x (1, D) -> (1, V)"""
        assert self.bare is not None
        start, end, close = (fused(f, dynamic=False) for f in (before_bare, after_bare, scores_bare))
        for n, (before, after) in enumerate(self.bare):
            q, k, v = start(x, before, *rope)
            x = end(x, window.attend(n, q, k, v), after)
        return close(x, (self.norm.weight, self.norm.eps), self.head)


def before_bare(x: Tensor, weights: tuple[Any, ...], cos: Tensor, sin: Tensor) -> tuple[Tensor, ...]:
    """x (1, D) -> q (1, H, E), k and v (1, K, E), queries and keys turned by their positions."""
    norm, q_, k_, v_, q_norm, k_norm = weights
    h = _rms(x, norm)
    q, k, v = (one_row(h, linear).unflatten(-1, (-1, cos.shape[-1])) for linear in (q_, k_, v_))
    return rotate(_rms(q, q_norm), cos, sin), rotate(_rms(k, k_norm), cos, sin), v


def after_bare(x: Tensor, y: Tensor, weights: tuple[Any, ...]) -> Tensor:
    """x (1, D) and what attention found, y (1, H*E) -> (1, D)"""
    out, norm, gate, up, down = weights
    x = x + one_row(y, out)
    h = _rms(x, norm)
    return x + one_row(F.silu(one_row(h, gate)) * one_row(h, up), down)


def scores_bare(x: Tensor, norm: Norm, head: Linear) -> Tensor:
    """x (1, D) -> (1, V), float32 at least"""
    return _at_least_float32(one_row(_rms(x, norm), head))


def one_row(x: Tensor, linear: Linear) -> Tensor:
    """x (1, K) -> (1, N), summed in float32 at least; compiled it is one pass over the weights."""
    weight, scale, bias = linear
    exact = torch.float64 if x.dtype == torch.float64 else torch.float32
    y = (weight.to(exact) * x.to(exact)).sum(-1)  # (N,)
    if scale is not None:
        y = y * scale.to(exact)
    if bias is not None:
        y = y + bias.to(exact)
    return y.to(x.dtype).unsqueeze(0)


def watched(module: nn.Module) -> bool:
    """Whether somebody hooked into it, or put another forward in its place."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _rms(x: Tensor, norm: Norm | None) -> Tensor:
    if norm is None:
        return x
    weight, eps = norm
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def _flat(layer: nn.Module) -> tuple[Before, After] | None:
    """The understanding twins of a layer, or None where it is not one of ours or someone watches it."""
    if type(layer) is not Layer or type(layer.attention) is not Attention:
        return None
    own = layer.attention
    twins = [layer.norm1, own.q, own.k, own.v, own.q_norm, own.k_norm, own.out, layer.norm2, layer.mlp]
    if any(type(part) is not PerExpert for part in twins) or any(map(watched, (layer, own, *twins))):
        return None
    norm1, q, k, v, q_norm, k_norm, out, norm2, mlp = (part.understanding for part in twins)
    if type(mlp) is not SwiGLU or watched(mlp):
        return None
    return Before(norm1, q, k, v, q_norm, k_norm), After(out, norm2, mlp.gate, mlp.up, mlp.down)


def _direct(part: nn.Module) -> Callable[[Tensor], Tensor]:
    """The part, or what it does without the calls in between."""
    if (linear := _bare_linear(part)) and linear[1] is None:
        return partial(F.linear, weight=linear[0], bias=linear[2])
    if norm := _bare_norm(part):
        return partial(_rms, norm=norm)
    return part


def _bare(before: Before, after: After) -> tuple[tuple[Any, ...], tuple[Any, ...]] | None:
    """The same as tensors; None where a part is no plain layer."""
    found: list[list[Any]] = []
    for parts in (before, after):
        found.append([])
        for part in parts:
            bare = _bare_linear(part) or _bare_norm(part)
            if bare is None and type(part) is not nn.Identity:
                return None
            found[-1].append(bare)
    return tuple(found[0]), tuple(found[1])


def _bare_linear(part: nn.Module) -> Linear | None:
    if type(part) is nn.Linear and not watched(part):
        return part.weight, None, part.bias
    if type(part) is Int8Linear and not watched(part):
        return part.codes, part.scale, part.bias
    return None


def _bare_norm(part: nn.Module) -> Norm | None:
    return (part.weight, part.eps) if type(part) is RMSNorm and not watched(part) else None


def _at_least_float32(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()
