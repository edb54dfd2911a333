# SPDX-License-Identifier: Apache-2.0
"""Layers made fast for reading, drawing and answering several at once, by numbers that they have anyway.

oneDNN multiplies by a weight that lies as it wants it, and torch lays it so anew at each call. Here it is
laid once: queries, keys and values in one, gate and up in one. What lies between the products (norms, rotary
codes, gates) is compiled into one pass each. Gradients go through the plain code, as before.

This holds a second copy of the layers' weights and of the head's. Where one changes, it is laid anew.
  L tokens   D hidden size   H heads   K key-value heads   E head size   F width of the feed-forward
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.networks.compiling import check_compiler, fused
from monai_unimedvl.networks.decoder import Decoder, Layer
from monai_unimedvl.networks.decoding import compile_words, watched
from monai_unimedvl.networks.layers import EXPERTS, PerExpert, RMSNorm, SwiGLU, rotate
from monai_unimedvl.sequence import Routes

Rope = tuple[Tensor, Tensor]
Norm = tuple[Tensor, float]
PLAIN = (nn.Linear, RMSNorm, nn.Identity)


def make_fast(network: nn.Module, *, compiled: bool = True) -> nn.Module:
    """The same network; without gradients its layers run on weights that lie ready, and words compiled.

    Layers that are not plain (adapters, quantised weights) stay as they are. On other devices than a CPU
    weights are joined only.

    Args:
        compiled: compile what lies between the products, and the decoding of words (see `compile_words`);
            the first prompt, drawing and answer then take up to half a minute longer each.

    Raises:
        ValueError: no layer in it, or no C++ compiler for the CPU.
    """
    layers = [module for module in network.modules() if type(module) is Layer]
    if not layers:
        raise ValueError(f"make_fast found no layer in {type(network).__name__}: pass a UniMedVL.")
    if compiled:
        check_compiler(network)
        compile_words(network)
    for layer in layers:
        layer.fast = FastLayer(layer, compiled) if FastLayer.fits(layer) else None
    for decoder in [module for module in network.modules() if type(module) is Decoder]:
        decoder.fast_head = FastHead(decoder)
    return network


class FastHead:
    """The scores of words by a head, or an embedding, that lies ready."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder, self.stamp = decoder, (0, 0)
        self.product: Product | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "stamp": (0, 0), "product": None}

    def __call__(self, x: Tensor) -> Tensor | None:
        """(B, D) -> (B, V); None where the head is no plain one."""
        head = self.decoder.embed if self.decoder.head is None else self.decoder.head
        if type(head) not in (nn.Linear, nn.Embedding) or watched(head):
            return None
        stamp = _stamp(head.weight)
        if stamp != self.stamp or self.product is None:
            self.stamp, self.product = stamp, Product([head])
        return self.product(x)


class FastLayer:
    """A layer's `before` and `after` on weights that lie ready.

    Args:
        layer: whose weights they are; it is not changed.
    """

    def __init__(self, layer: Layer, compiled: bool) -> None:
        self.layer, self.compiled = layer, compiled
        self.stamp: list[tuple[int, int]] = []
        self.experts: dict[str, Laid] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "stamp": [], "experts": {}}  # what lies for oneDNN cannot be copied

    @staticmethod
    def fits(layer: Layer) -> bool:
        """Whether every part of the layer is a plain one that nobody watches."""
        return all(type(leaf) in PLAIN and not watched(leaf) for leaf in _leaves(layer))

    def ready(self, routes: Routes) -> bool:
        """Lay the weights out, unless they lie there as they are now; False where they cannot be."""
        leaves = list(_leaves(self.layer))
        if not all(type(leaf) in PLAIN and not watched(leaf) for leaf in leaves):
            return False
        weights = [leaf.weight for leaf in leaves if type(leaf) is not nn.Identity]
        stamp = [_stamp(weight) for weight in weights]
        if stamp != self.stamp:
            self.stamp, self.experts = stamp, {}
        for expert, count in zip(EXPERTS, routes[:2], strict=True):
            if count and expert not in self.experts:
                self.experts[expert] = Laid(self.layer, expert)
        return True

    def before(
        self, x: Tensor, routes: Routes, rope: Rope, arrival: Tensor | None
    ) -> tuple[Tensor, Tensor, Tensor]:
        """As `Layer.before`: (L, D) in memory order -> q (L, H, E), k and v (L, K, E) in order of reading."""
        own = self.layer.attention
        heads = (own.num_heads, own.num_kv_heads)
        normed, turned = self._code(rms), self._code(turn)
        parts = []
        for expert, rows in self._rows(routes):
            laid = self.experts[expert]
            qkv = laid.qkv(normed(x[rows], laid.norm1))
            cos, sin = (code[rows] for code in rope)
            parts.append(turned(qkv, laid.q_norm, laid.k_norm, cos, sin, heads))
        q, k, v = parts[0] if len(parts) == 1 else map(torch.cat, zip(*parts, strict=True))
        if arrival is not None:
            q, k, v = (x.index_select(0, arrival) for x in (q, k, v))
        return q, k, v

    def after(self, x: Tensor, y: Tensor, routes: Routes, home: Tensor | None) -> Tensor:
        """As `Layer.after`: x (L, D) in memory order, y (L, H*E) in order of reading -> (L, D)"""
        if home is not None:
            y = y.index_select(0, home)
        normed, gated = self._code(add_rms), self._code(gate)
        parts = []
        for expert, rows in self._rows(routes):
            laid = self.experts[expert]
            middle, h = normed(x[rows], laid.out(y[rows]), laid.norm2)
            parts.append(laid.down(gated(laid.gate_up(h))).add_(middle))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _code(self, function: Callable[..., Any]) -> Callable[..., Any]:
        return fused(function, dynamic=None) if self.compiled else function

    def _rows(self, routes: Routes) -> list[tuple[str, slice]]:
        """Which tokens each expert takes."""
        first, second = routes[:2]
        rows = [("understanding", slice(0, first)), ("generation", slice(first, first + second))]
        return [(name, part) for name, part in rows if part.stop > part.start]


class Laid:
    """The weights of one expert of a layer, laid out."""

    def __init__(self, layer: Layer, expert: str) -> None:
        def twin(part: PerExpert) -> Any:
            return getattr(part, expert)

        own, mlp = layer.attention, twin(layer.mlp)
        self.qkv = Product([twin(own.q), twin(own.k), twin(own.v)])
        self.out = Product([twin(own.out)])
        self.gate_up = Product([mlp.gate, mlp.up])
        self.down = Product([mlp.down])
        self.norm1, self.norm2 = _norm(twin(layer.norm1)), _norm(twin(layer.norm2))
        self.q_norm, self.k_norm = _norm(twin(own.q_norm)), _norm(twin(own.k_norm))


class Product:
    """Linear layers side by side, as one: (M, K) -> (M, N of all)."""

    def __init__(self, layers: Sequence[nn.Linear | nn.Embedding]) -> None:
        with torch.no_grad():
            weight = torch.cat([layer.weight for layer in layers]) if len(layers) > 1 else layers[0].weight
            biases = [bias for layer in layers if (bias := getattr(layer, "bias", None)) is not None]
            self.bias = torch.cat(biases) if len(biases) == len(layers) and biases else None
        self.weight = weight.detach()
        self.packed = _can_pack(weight.device.type, weight.dtype)
        if self.packed:
            self.weight = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous())

    def __call__(self, x: Tensor) -> Tensor:
        """(M, K) -> (M, N)"""
        if not self.packed:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.weight, self.bias, "none", [], "")


def rms(x: Tensor, norm: Norm | None) -> Tensor:
    """x / sqrt(mean(x^2) + eps), times a weight; x itself without one."""
    if norm is None:
        return x
    weight, eps = norm
    return F.rms_norm(x, weight.shape, weight.to(x.dtype), eps)


def turn(
    qkv: Tensor, q_norm: Norm | None, k_norm: Norm | None, cos: Tensor, sin: Tensor, heads: tuple[int, int]
) -> tuple[Tensor, Tensor, Tensor]:
    """(L, (H + 2K) E) -> q (L, H, E), k and v (L, K, E), queries and keys turned by their positions."""
    many, few = heads
    q, k, v = qkv.unflatten(-1, (many + 2 * few, -1)).split([many, few, few], dim=1)
    return rotate(rms(q, q_norm), cos, sin), rotate(rms(k, k_norm), cos, sin), v


def add_rms(x: Tensor, y: Tensor, norm: Norm) -> tuple[Tensor, Tensor]:
    """x + y (L, D), and the same normed."""
    x = x + y
    return x, rms(x, norm)


def gate(x: Tensor) -> Tensor:
    """Gate and up side by side (L, 2F) -> silu(gate) * up (L, F)"""
    first, second = x.chunk(2, dim=-1)
    return F.silu(first) * second


def _leaves(layer: Layer) -> Iterator[nn.Module]:
    """The parts of both experts; what is built otherwise comes as it is."""
    own = layer.attention
    for twins in (layer.norm1, own.q, own.k, own.v, own.q_norm, own.k_norm, own.out, layer.norm2, layer.mlp):
        if type(twins) is not PerExpert or watched(twins):
            yield twins
            continue
        for twin in (twins.understanding, twins.generation):
            if type(twin) is SwiGLU and not watched(twin):
                yield from (twin.gate, twin.up, twin.down)
            else:
                yield twin


def _stamp(weight: Tensor) -> tuple[int, int]:
    """Changes with the place and the content of a weight."""
    return weight.data_ptr(), 0 if weight.is_inference() else weight._version


def _norm(part: nn.Module) -> Any:
    return (part.weight.detach(), part.eps) if type(part) is RMSNorm else None


@lru_cache
def _can_pack(device: str, dtype: torch.dtype) -> bool:
    """Whether torch lays weights for oneDNN here; the names are private to torch, so they are tried."""
    if device != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return False
    x = torch.arange(6.0).view(2, 3).to(dtype)
    weight = torch.arange(12.0).view(4, 3).to(dtype)
    try:
        laid = torch.ops.mkldnn._reorder_linear_weight(weight)
        y = torch.ops.mkldnn._linear_pointwise(x, laid, None, "none", [], "")
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return torch.equal(y, F.linear(x, weight))
