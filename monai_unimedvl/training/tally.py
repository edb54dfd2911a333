# SPDX-License-Identifier: Apache-2.0
"""What a training step takes, without taking it: the real code on tensors without content.

torch's fake tensors carry shapes, dtypes and the lives of their storages, but no numbers. So the 14B network
is "trained" here in seconds, and what is counted is what the code does, not what a formula remembers.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any
from unittest.mock import patch

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import flop_registry

from monai_unimedvl.networks import attention as attention_calls
from monai_unimedvl.networks import vision
from monai_unimedvl.networks.layers import rotary
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Canvas, Marks, PackedSequence, Segment, pack
from monai_unimedvl.training.acceleration import recompute_layers
from monai_unimedvl.training.adapters import add_adapters
from monai_unimedvl.training.parts import freeze

MARKS = Marks(0, 1, 2, 3)  # any ids will do
FEW = 2  # layers that are counted one by one


@dataclass(frozen=True)
class Step:
    """Bytes and floating-point operations of one forward and backward pass over a pack.

    Args:
        activations: the most that is alive at once besides weights and gradients that wait for the update.
        peak: the same with these gradients.
        encoding: while images become latents, before the step.
        flops: of the step, with the encoding.
    """

    activations: int
    peak: int
    encoding: int
    flops: int


class Tally(TorchDispatchMode):
    """Counts operations, and the bytes of storages that were made inside and still live: `peak` at most.

    `activations` is the same without gradients that wait for the update.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.flops = self.live = self.peak = self.activations = self.gradients = 0
        self._known: weakref.WeakSet[Any] = weakref.WeakSet()
        for x in (*network.parameters(), *network.buffers()):
            self._known.add(x.untyped_storage())
        for p in network.parameters():
            if p.requires_grad:
                p.register_post_accumulate_grad_hook(self._gradient)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        packet = getattr(func, "_overloadpacket", None)
        if packet in flop_registry and "attention" not in str(packet):  # counted by hand
            self.flops += flop_registry[packet](*args, **kwargs, out_val=found)
        for x in tree_leaves(found):
            if isinstance(x, Tensor):
                self._note(x.untyped_storage())
        return found

    def _note(self, storage: Any) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        size = storage.nbytes()
        self.live += size
        self.peak = max(self.peak, self.live)
        self.activations = max(self.activations, self.live - self.gradients)
        weakref.finalize(storage, self._forget, size)

    def _forget(self, size: int) -> None:
        self.live -= size

    def _gradient(self, p: Tensor) -> None:
        self.gradients += p.grad.untyped_storage().nbytes()  # type: ignore[union-attr]


@contextmanager
def _fused() -> Iterator[None]:
    """Attention as the CUDA kernels do it: in bf16, keeping no table of scores."""

    def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, **options: bool) -> Tensor:
        return _Kernel.apply(q.bfloat16(), k.bfloat16(), v.bfloat16(), mask)

    with patch.object(attention_calls, "scaled_dot_product", attention):
        with patch.object(vision, "scaled_dot_product", attention):
            yield


class _Kernel(torch.autograd.Function):
    """Shapes and saved tensors of a fused attention."""

    @staticmethod
    def forward(ctx: Any, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        y = torch.empty_like(q)
        scores = q.new_empty(q.shape[:-1], dtype=torch.float32)  # logarithms of the sums
        bias = None if mask is None else mask.to(q.dtype)
        ctx.save_for_backward(q, k, v, y, scores, *([] if bias is None else [bias]))
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        q, k, v, *_ = ctx.saved_tensors
        return torch.empty_like(q), torch.empty_like(k), torch.empty_like(v), None


def tally(
    config: dict[str, Any], samples: Sequence[Sequence[Segment]], *, precision: str = "bf16-mixed",
    frozen: Sequence[str] = (), recompute: bool = False, detach_understanding: bool = False,
    adapters: str | None = None, rank: int = 4, cuda: bool = False,
) -> Step:  # fmt: skip
    """One training step on a pack.

    Args:
        config: of a network, as `UniMedVL.config` gives it.
        samples: of the pack; canvases hold latents and say by `grid` how large their images are.
        cuda: attention as on CUDA; else as on a CPU, where it runs in float32.
    """
    options = (precision, frozen, recompute, adapters, rank)
    seq = pack(samples, MARKS)
    seq = seq.detached() if detach_understanding else seq
    deep, seeing = config["decoder"]["num_layers"], (config.get("vision") or {}).get("num_layers", 0)
    few = min(deep, FEW), min(seeing, FEW)
    base = _measured(_cut(config, *few), seq, options, cuda)
    found = dict(base)
    for place, (all_, some) in enumerate(zip((deep, seeing), few, strict=True)):
        if all_ > some:  # every further layer takes the same
            one_more = [n + (i == place) for i, n in enumerate(few)]
            more = _measured(_cut(config, *one_more), seq, options, cuda)
            for name, value in more.items():
                found[name] += (all_ - some) * (value - base[name])
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    network = _network(mode, _cut(config, 1, 1), precision, (), False, None, rank)
    with mode:
        encoding, flops = _encoding(network, _images(samples), precision)
    attention = _attention_flops(config, seq)
    return Step(found["activations"], found["peak"], encoding, found["flops"] + attention + flops)


def _cut(config: dict[str, Any], deep: int, seeing: int) -> dict[str, Any]:
    """The network with fewer layers."""
    cut = {**config, "decoder": {**config["decoder"], "num_layers": deep}}
    if config.get("vision"):
        cut["vision"] = {**config["vision"], "num_layers": seeing}
    return cut


def _measured(config: dict[str, Any], seq: PackedSequence, options: Any, cuda: bool) -> dict[str, int]:
    noisy = seq.noisy.nonzero().squeeze(1)
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    network = _network(mode, config, *options)
    with mode:
        fake, at = _faked(mode, seq), mode.from_tensor(noisy)
        half = torch.autocast("cpu", torch.bfloat16) if options[0] == "bf16-mixed" else nullcontext()
        with _fused() if cuda else nullcontext(), Tally(network) as counted:
            _run(network, fake, at, half)
    return {name: getattr(counted, name) for name in ("activations", "peak", "flops")}


def _network(
    mode: FakeTensorMode, config: dict[str, Any], precision: str, frozen: Sequence[str], recompute: bool,
    adapters: str | None, rank: int,
) -> UniMedVL:  # fmt: skip
    with torch.device("meta"):
        network = from_config(config)
        if precision == "bf16-true":
            network = network.bfloat16()
        if adapters is not None:
            network.adapter_base = ""  # nothing to take a fingerprint of
            add_adapters(network, adapters, rank=rank)
    freeze(network, frozen)
    own = network.decoder
    rotary(torch.zeros(1), own.head_size, own.rope_theta)  # its frequencies are kept, and must be real ones
    with mode:
        for module in network.modules():  # on a CPU without content: autocast minds the device
            for name, p in module._parameters.items():
                if p is not None:
                    empty = torch.empty(p.shape, dtype=p.dtype)
                    module._parameters[name] = nn.Parameter(empty, requires_grad=p.requires_grad)
            for name, b in module._buffers.items():
                module._buffers[name] = None if b is None else torch.empty(b.shape, dtype=b.dtype)
    if recompute:
        recompute_layers(network)
    network._cell = lambda table, cells, side: table[cells[:, 0] * side + cells[:, 1]]  # type: ignore[method-assign]
    return network.train()


def _run(network: UniMedVL, seq: PackedSequence, noisy: Tensor, half: Any) -> None:
    """The losses as `Objective` has them, without looking at a number, and their gradients."""
    with half:
        clean = seq.latents
        if clean is not None:
            noise = torch.randn_like(clean)
            seq = seq.with_latents(clean + noise, seq.times)
        found = network(seq)
        loss = found.hidden.new_zeros(())
        if len(seq.labels):
            loss = loss + F.cross_entropy(network.logits(found.hidden[seq.label_at]).float(), seq.labels)
        if clean is not None and len(noisy):
            target = (noise - clean)[noisy]
            loss = loss + (found.velocity[noisy].float() - target.float()).square().mean()  # type: ignore[index]
    loss.backward()


def _encoding(network: UniMedVL, images: dict[tuple[int, int], int], precision: str) -> tuple[int, int]:
    """Bytes at most and operations of turning images into latents, those of one size together."""
    peak = flops = 0
    stride = network.canvas_stride
    for (height, width), count in images.items():
        half = torch.autocast("cpu", torch.bfloat16) if precision == "bf16-mixed" else nullcontext()
        with torch.no_grad(), half, Tally(network.autoencoder) as counted:
            network.autoencoder.encode_stage_2_inputs(torch.empty(count, 3, height * stride, width * stride))
        peak, flops = max(peak, counted.peak), flops + counted.flops
    return peak, flops


def _images(samples: Sequence[Sequence[Segment]]) -> dict[tuple[int, int], int]:
    """How many canvases there are of each grid."""
    found: dict[tuple[int, int], int] = {}
    for segments in samples:
        for segment in segments:
            if isinstance(segment, Canvas):
                found[segment.grid] = found.get(segment.grid, 0) + 1
    return found


def _attention_flops(config: dict[str, Any], seq: PackedSequence) -> int:
    """Two products forward and five backward, over the pairs that are computed."""
    pairs = 0
    for block in seq.plan.blocks:
        each = block.length**2
        if block.parts:
            seen = [sum(block.parts[j].length for j in (*part.sees, i)) for i, part in enumerate(block.parts)]
            each = sum(part.length * keys for part, keys in zip(block.parts, seen, strict=True))
        pairs += len(block.samples) * each
    total = pairs * config["decoder"]["hidden_size"] * config["decoder"]["num_layers"]
    if config.get("vision"):
        pairs = sum(n * n for n in seq.view_lengths)
        total += pairs * config["vision"]["hidden_size"] * config["vision"]["num_layers"]
    return 7 * 2 * total


def _faked(mode: FakeTensorMode, seq: PackedSequence) -> PackedSequence:
    """The pack with the same plan and no content."""
    values = {name: tree_map_only(Tensor, mode.from_tensor, x) for name, x in vars(seq).items()}
    plan = seq.plan
    move = {
        "arrival": plan.arrival, "home": plan.home, "layout": plan.layout, "blocks": plan.blocks,
    }  # fmt: skip
    values["plan"] = replace(plan, **tree_map_only(Tensor, mode.from_tensor, move))
    return replace(seq, **values)
