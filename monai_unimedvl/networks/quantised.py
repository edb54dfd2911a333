# SPDX-License-Identifier: Apache-2.0
"""Linear layers whose weights are held in 8 or 4 bits, in place of `nn.Linear`.

Few rows (decoding) go through torch's packed kernels, which read a half or a quarter of the bytes; many rows
(a prompt) are multiplied by weights that are unpacked a stretch at a time, which keeps the speed of bf16.
nf4 are the sixteen levels of QLoRA (Dettmers et al. 2023, arXiv 2305.14314, appendix E), scaled by block.
  M rows   K inputs   N outputs   G inputs that share a scale
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from monai.utils import optional_import
from torch import Tensor, nn

KINDS = ("int8", "nf4", "int4")
STRETCH = 2_000_000  # weights unpacked at a time: they stay in the cache of a core
FEW = {"int8": 8, "int4": 128}  # rows up to which the packed kernels are the faster ones
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635,
    -0.18477343022823334, -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725,
    0.24611230194568634, 0.33791524171829224, 0.44070982933044434, 0.5626170039176941, 0.7229568362236023,
    1.0,
)  # fmt: skip


class QuantisedLinear(nn.Module):
    """What all kinds share: the interface of `nn.Linear`, and rows unpacked a stretch at a time.

    Args:
        weight: (N, K), read once and not kept.
        bias: (N,) or None.
        dtype: in which it computes.
    """

    kind = ""
    codes: Tensor
    bias: Tensor | None

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__()
        self.out_features, self.in_features = weight.shape
        self.register_buffer("bias", None if bias is None else bias.detach().to(weight.device, dtype))

    @property
    def weight(self) -> Tensor:
        """(N, K), unpacked anew at each access."""
        return torch.cat([self.unpacked(rows) for rows in self.stretches()])

    def stretches(self) -> Iterator[slice]:
        """Rows of the weight that are unpacked together."""
        step = max(64, STRETCH // self.in_features // 64 * 64)
        return (slice(at, min(at + step, self.out_features)) for at in range(0, self.out_features, step))

    def unpacked(self, rows: slice) -> Tensor:
        """The weights (n, K) of some outputs."""
        raise NotImplementedError

    def few(self, x: Tensor) -> Tensor | None:
        """x (M, K) -> (M, N) by a packed kernel; None where there is none, or it is the slower road."""
        return None

    def forward(self, x: Tensor) -> Tensor:
        """(..., K) -> (..., N)"""
        flat = x.reshape(-1, self.in_features)
        y = None if torch.is_grad_enabled() and x.requires_grad else self.few(flat)
        if y is None:
            y = torch.cat([F.linear(flat, self.unpacked(rows).to(x.dtype)) for rows in self.stretches()], -1)
        if self.bias is not None:
            y = y + self.bias
        return y.unflatten(0, x.shape[:-1]) if x.dim() != 2 else y

    def extra_repr(self) -> str:
        """Sizes and kind, for print."""
        return f"{self.in_features}, {self.out_features}, {self.kind}, bias={self.bias is not None}"


class Int8Linear(QuantisedLinear):
    """One scale an output, symmetric: weight = codes * scale."""

    kind = "int8"
    scale: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        codes = torch.empty(weight.shape, dtype=torch.int8, device=weight.device)
        scale = torch.empty(self.out_features, dtype=dtype, device=weight.device)
        for rows in self.stretches():
            part = weight[rows].detach().float()
            scale[rows] = part.abs().amax(1).clamp_min(1e-12) / 127
            levels = part / scale[rows].float().unsqueeze(1)  # by the scale as it is held
            codes[rows] = levels.round_().clamp_(-127, 127)
        self.register_buffer("codes", codes)
        self.register_buffer("scale", scale)

    def unpacked(self, rows: slice) -> Tensor:
        """See `QuantisedLinear.unpacked`."""
        return self.codes[rows].to(self.scale.dtype) * self.scale[rows].unsqueeze(1)

    def few(self, x: Tensor) -> Tensor | None:
        """See `QuantisedLinear.few`; many rows meet the bare codes, and are scaled once."""
        if len(x) <= FEW["int8"] and x.dtype == self.scale.dtype and _kernel("int8", x.device.type, x.dtype):
            return torch._weight_int8pack_mm(x, self.codes, self.scale)
        parts = [F.linear(x, self.codes[rows].to(x.dtype)) for rows in self.stretches()]
        return torch.cat(parts, -1) * self.scale.to(x.dtype)


class Int4Linear(QuantisedLinear):
    """Sixteen levels between the ends of each group of inputs: weight = (code - 8) * scale + zero.

    Codes lie as torch's kernel wants them where there is one, else two to a byte.
    """

    kind = "int4"
    scale: Tensor  # (K/G, N, 2): scale and zero

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self.group = _group(self.in_features, (64, 32))
        # the kernel packs blocks of 64 rows
        kernel = self.out_features % 64 == 0 and _kernel("int4", weight.device.type, dtype)
        codes, scales = [], []
        for rows in self.stretches():
            part = weight[rows].detach().float().unflatten(1, (-1, self.group))  # (n, K/G, G)
            low, high = part.amin(2), part.amax(2)
            scale = ((high - low) / 15).clamp_min(1e-8).to(dtype)
            zero = (low + 8 * scale.float()).to(dtype)  # what code 8 stands for
            code = ((part - zero.float().unsqueeze(2)) / scale.float().unsqueeze(2)).add_(8)
            code = code.round_().clamp_(0, 15).to(torch.int32).flatten(1)  # (n, K)
            codes.append(
                torch.ops.aten._convert_weight_to_int4pack_for_cpu(code, 1) if kernel else _two(code)
            )
            scales.append(torch.stack([scale, zero], -1))
        self.packed = bool(kernel)
        self.register_buffer("codes", torch.cat(codes))  # (N, K/2) bytes
        self.register_buffer("scale", torch.cat(scales).transpose(0, 1).contiguous())

    def unpacked(self, rows: slice) -> Tensor:
        """See `QuantisedLinear.unpacked`."""
        codes = _from_kernel(self.codes[rows]) if self.packed else _apart(self.codes[rows])  # (n, K)
        scale, zero = self.scale[:, rows].transpose(0, 1).unbind(-1)  # (n, K/G)
        grouped = codes.unflatten(1, (-1, self.group)).to(scale.dtype) - 8
        return (grouped * scale.unsqueeze(2) + zero.unsqueeze(2)).flatten(1)

    def few(self, x: Tensor) -> Tensor | None:
        """See `QuantisedLinear.few`."""
        if not self.packed or len(x) > FEW["int4"] or x.dtype != self.scale.dtype:
            return None
        return torch.ops.aten._weight_int4pack_mm_for_cpu(x.contiguous(), self.codes, self.group, self.scale)


class NF4Linear(QuantisedLinear):
    """Sixteen levels that are even for normal numbers; one scale for each block of inputs. No kernel: small,
    not fast.
    """

    kind = "nf4"
    scale: Tensor  # (N, K/G)
    levels: Tensor

    def __init__(self, weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> None:
        super().__init__(weight, bias, dtype)
        self.group = _group(self.in_features, (64, 32, 16))
        levels = torch.tensor(NF4, device=weight.device)
        codes, scales = [], []
        for rows in self.stretches():
            part = weight[rows].detach().float().unflatten(1, (-1, self.group))
            scale = part.abs().amax(2).clamp_min(1e-12).to(dtype)
            middles = (levels[1:] + levels[:-1]) / 2
            code = torch.bucketize(part / scale.float().unsqueeze(2), middles)
            codes.append(_two(code.flatten(1)))
            scales.append(scale)
        self.register_buffer("codes", torch.cat(codes))
        self.register_buffer("scale", torch.cat(scales))
        self.register_buffer("levels", levels.to(dtype), persistent=False)

    def unpacked(self, rows: slice) -> Tensor:
        """See `QuantisedLinear.unpacked`."""
        values = self.levels[_apart(self.codes[rows]).long()].unflatten(1, (-1, self.group))
        return (values * self.scale[rows].unsqueeze(2)).flatten(1)


_OURS: dict[str, type[QuantisedLinear]] = {"int8": Int8Linear, "int4": Int4Linear, "nf4": NF4Linear}


def quantised(weight: Tensor, bias: Tensor | None, kind: str, dtype: torch.dtype) -> nn.Module:
    """A linear layer that holds weight (N, K) in few bits, on the device of `weight`.

    On CUDA bitsandbytes (int8, nf4) and torchao (int4) take over where they are installed: their kernels are
    the fast ones there. Everywhere else, and without them, it is one of ours.

    Args:
        dtype: in which it computes.

    Raises:
        ValueError: an unknown kind, or weights that are no floating matrix.
    """
    check_kind(kind)
    if weight.dim() != 2 or not weight.is_floating_point():
        raise ValueError(
            f"quantised got weights {weight.dtype} of shape {tuple(weight.shape)}, expected floats (N, K): "
            "quantise linear layers only."
        )
    if weight.is_cuda and (built := _ON_CUDA[kind](weight, bias, dtype)) is not None:
        return built
    if kind != "int8" and weight.shape[1] % 32:
        kind = "int8"  # too narrow for groups
    return _OURS[kind](weight, bias, dtype)


def is_quantised(network: nn.Module) -> bool:
    """Whether any layer is, by whichever library."""
    return any(
        isinstance(module, QuantisedLinear) or type(module).__module__.startswith("bitsandbytes")
        for module in network.modules()
    )


def check_kind(kind: str | None) -> None:
    """Raise ValueError unless `kind` is one of `KINDS` or None."""
    if kind is not None and kind not in KINDS:
        raise ValueError(f"quantize={kind!r} is not known, expected one of {', '.join(KINDS)}, or None.")


def has_kernel(kind: str) -> bool:
    """Whether torch has the packed kernel of "int8" or "int4" for bfloat16 on this CPU."""
    return _kernel(kind, "cpu", torch.bfloat16)


def _bits_and_bytes(weight: Tensor, bias: Tensor | None, kind: str, dtype: torch.dtype) -> nn.Module | None:
    library, there = optional_import("bitsandbytes")
    if not there:
        return None
    sizes: Any = (weight.shape[1], weight.shape[0], bias is not None)
    if kind == "int8":
        layer = library.nn.Linear8bitLt(*sizes, has_fp16_weights=False)
        layer.weight = library.nn.Int8Params(weight.detach().cpu(), requires_grad=False)
    else:
        layer = library.nn.Linear4bit(*sizes, compute_dtype=dtype, quant_type="nf4")
        layer.weight = library.nn.Params4bit(weight.detach().cpu(), requires_grad=False, quant_type="nf4")
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(dtype), requires_grad=False)
    return layer.to(weight.device)  # it quantises on its way


def _torchao(weight: Tensor, bias: Tensor | None, dtype: torch.dtype) -> nn.Module | None:
    config, there = optional_import("torchao.quantization", name="Int4WeightOnlyConfig")
    quantize_, _ = optional_import("torchao.quantization", name="quantize_")
    if not there:
        return None
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().to(dtype), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().to(weight.device, dtype), requires_grad=False)
    quantize_(layer, config(group_size=64 if weight.shape[1] % 64 == 0 else 32))
    return layer


_ON_CUDA: dict[str, Callable[[Tensor, Tensor | None, torch.dtype], nn.Module | None]] = {
    "int8": lambda weight, bias, dtype: _bits_and_bytes(weight, bias, "int8", dtype),
    "nf4": lambda weight, bias, dtype: _bits_and_bytes(weight, bias, "nf4", dtype),
    "int4": _torchao,
}


def _group(inputs: int, sizes: tuple[int, ...]) -> int:
    return next(size for size in sizes if inputs % size == 0)


def _two(codes: Tensor) -> Tensor:
    """(N, K) of 0..15 -> (N, K/2) bytes, the even one low"""
    codes = codes.to(torch.uint8)
    return codes[:, ::2] | codes[:, 1::2] << 4


def _apart(codes: Tensor) -> Tensor:
    """The inverse of `_two`"""
    return torch.stack([codes & 15, codes >> 4], -1).flatten(1)


def _from_kernel(codes: Tensor) -> Tensor:
    """Codes (n, K) of bytes (n, K/2) that torch packed: 64 rows of an input lie together, 32 low, 32 high."""
    blocks = codes.reshape(len(codes) // 64, -1, 32)  # (n/64, K, 32)
    halves = torch.stack([blocks & 15, blocks >> 4], 1)  # (n/64, 2, K, 32)
    return halves.transpose(2, 3).flatten(0, 2)


@lru_cache
def _kernel(kind: str, device: str, dtype: torch.dtype) -> bool:
    """Whether torch has this packed kernel here, it says what it should, and we can read how it packs.

    The two are private to torch, so they are tried once and not trusted.
    """
    if device != "cpu":
        return False
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        x = torch.randn(2, 64).to(dtype)
        codes = torch.randint(0, 16, (128, 64), dtype=torch.int32)
        scale = torch.rand(2, 128, 2).to(dtype)
    try:
        if kind == "int8":
            y = torch._weight_int8pack_mm(x, (codes - 8).to(torch.int8), scale[0, :, 0].contiguous())
            expected = (x.float() @ (codes - 8).float().T) * scale[0, :, 0].float()
        else:
            packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes, 1)
            if not torch.equal(_from_kernel(packed).int(), codes):
                return False
            y = torch.ops.aten._weight_int4pack_mm_for_cpu(x, packed, 32, scale)
            each = scale.float().transpose(0, 1).unsqueeze(3)  # (N, K/G, 2, 1)
            weight = (codes.float().unflatten(1, (2, 32)) - 8) * each[:, :, 0] + each[:, :, 1]
            expected = x.float() @ weight.flatten(1).T
    except (RuntimeError, AttributeError, NotImplementedError):
        return False
    return bool((y.float() - expected).abs().max() <= 0.02 * expected.abs().max())
