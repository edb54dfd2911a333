# SPDX-License-Identifier: Apache-2.0
"""How fast a run is, and which losses belong to which task and modality."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from time import perf_counter

import torch
from torch import Tensor

from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Canvas, Segment, View, count_tokens
from monai_unimedvl.sequence.segments import AROUND
from monai_unimedvl.training.parts import part_of

BACKWARD = 3  # forward once, and twice that for the gradients of inputs and weights
Names = Callable[[str], Sequence[str]]  # origin of a sample -> what its losses are logged under


def task_of(origin: str) -> list[str]:
    """The stream of a sample ("sr4/12/0" -> ["sr4"]): its task."""
    return [origin.rsplit("/", 2)[0]]


@dataclass
class Tally:
    """Losses of samples, summed by name.

    Args:
        names: origin -> names; the sample counts under each.
    """

    names: Names = task_of
    _sums: dict[str, Tensor] = field(default_factory=lambda: defaultdict(lambda: torch.zeros(4)))

    def add(self, origins: Iterable[str], by_sample: Tensor) -> None:
        """Count the samples of a pack: `by_sample` (S, 4) of `Losses`."""
        for origin, row in zip(origins, by_sample.cpu(), strict=True):
            for name in self.names(origin):
                self._sums[name] += row

    def means(self, prefix: str = "") -> dict[str, float]:
        """{"text/vqa": mean over labels, "flow/sr4": mean over patches}; starts anew."""
        found = {}
        for name, (text, labels, flow, patches) in sorted(self._sums.items()):
            if labels:
                found[f"{prefix}text/{name}"] = float(text / labels)
            if patches:
                found[f"{prefix}flow/{name}"] = float(flow / patches)
        self._sums.clear()
        return found


def step_flops(network: UniMedVL, samples: Sequence[Sequence[Segment]]) -> float:
    """Floating-point operations of a training step on a pack: matrices and attention, backward included.

    A product of matrices counts two for each multiplication; recomputed layers are not counted twice.
    """
    return BACKWARD * (_products(network, samples) + _attention(network, samples))


def _products(network: UniMedVL, samples: Sequence[Sequence[Segment]]) -> float:
    """Of a forward, in linear layers."""
    expert = dict.fromkeys(("understanding", "generation"), 0)
    for name, p in network.decoder.named_parameters():
        if p.ndim == 2 and (part := part_of(f"decoder.{name}")) in expert:
            expert[part] += p.numel()
    seen = _matrices(network.vision) + _matrices(network.connector)
    drawn = sum(_matrices(x) for x in (network.latent_in, network.latent_out, network.time_embed))
    total = 0.0
    for segment in (s for segments in samples for s in segments if not s.dropped):
        n = segment.tokens
        total += 2 * AROUND * expert["understanding"]  # the marks
        total += 2 * n * expert["generation" if isinstance(segment, Canvas) else "understanding"]
        if isinstance(segment, View):
            total += 2 * n * seen
        elif isinstance(segment, Canvas):
            total += 2 * n * drawn
        elif segment.loss:
            total += 2 * (n + 1) * network.decoder.embed.weight.numel()
    return total


def _attention(network: UniMedVL, samples: Sequence[Sequence[Segment]]) -> float:
    """Of a forward, between tokens of a sample and between patches of an image; masked ones count too."""
    width, depth = network.decoder.embed.embedding_dim, len(network.decoder.layers)
    total = 0.0
    for segments in samples:
        kept = [s for s in segments if not s.dropped]
        sizes = [s.tokens for s in kept]
        total += 4 * count_tokens(kept) ** 2 * width * depth
        if network.vision is not None:
            patches = sum(n * n for n, s in zip(sizes, kept, strict=True) if isinstance(s, View))
            total += 4 * patches * network.vision.norm.weight.shape[0] * len(network.vision.layers)
    return total


def _matrices(module: torch.nn.Module | None) -> int:
    """Numbers in the matrices that tokens are multiplied with; tables are looked up."""
    if module is None:
        return 0
    return sum(x.weight.numel() for x in module.modules() if isinstance(x, torch.nn.Linear))


def measured_flops(device: torch.device, dtype: torch.dtype, size: int = 768) -> float:
    """Operations a second of a plain product of matrices here: the ceiling that a step is compared to."""
    size = size if device.type == "cpu" else 8192
    a = torch.ones(size, size, device=device, dtype=dtype)
    best = 0.0
    for _ in range(3):
        _wait(device)
        start = perf_counter()
        a @ a
        _wait(device)
        best = max(best, 2 * size**3 / (perf_counter() - start))
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@dataclass
class Speed:
    """Tokens and operations a second between two readings.

    Args:
        peak: operations a second that count as full use; None leaves the use out.
    """

    peak: float | None = None
    tokens: int = 0
    flops: float = 0.0
    seconds: float = 0.0
    steps: int = 0

    def add(self, network: UniMedVL, batch: Pack, seconds: float) -> None:
        """Count one step."""
        self.tokens += batch.tokens
        self.seconds += seconds
        self.steps += 1
        if self.peak:
            self.flops += step_flops(network, batch.samples)

    def read(self, ranks: int = 1) -> dict[str, float]:
        """{"tokens_per_second": over all ranks, "step_seconds", "mfu"}; starts anew."""
        if not self.seconds:
            return {}
        found = {
            "tokens_per_second": ranks * self.tokens / self.seconds,
            "step_seconds": self.seconds / self.steps,
        }
        if self.peak:
            found["mfu"] = self.flops / self.seconds / self.peak
        self.tokens, self.flops, self.seconds, self.steps = 0, 0.0, 0.0, 0
        return found
