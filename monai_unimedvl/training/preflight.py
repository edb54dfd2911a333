# SPDX-License-Identifier: Apache-2.0
"""Before a training starts: what it takes of memory, time and disk, from its config alone.

Nothing is loaded, drawn or allocated: the network is built without memory and one step runs on tensors
without content (`training.tally`). Lengths of texts are assumed (`words`); sizes of images are the stage's.
  GiB are 2^30 bytes throughout.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import combinations
from math import ceil
from random import Random
from typing import Any

import torch

from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Canvas, Segment, Text, View, count_tokens
from monai_unimedvl.training.adapters import add_adapters
from monai_unimedvl.training.curriculum import Stage
from monai_unimedvl.training.optimizer import MATRICES, Rates
from monai_unimedvl.training.parts import PARTS, count_parameters, fits, part_of
from monai_unimedvl.training.settings import Settings
from monai_unimedvl.training.tally import Step, tally

GIB = 2**30
DAY = 86_400
MACHINES = ((1, 24), (1, 80), (8, 80))  # devices, GiB each
USABLE = 0.94  # of a device, after what the allocator cannot place
CONTEXT = 1.0 * GIB  # CUDA's own, with its libraries' workspaces
PROCESS = 2.5 * GIB  # a Python with torch, Lightning and CUDA, on the host; about 0.7 of it without CUDA
DRAWS = 400  # samples that stand for a stage
BYTES = {"int8": 1.02, "nf4": 0.57}  # of a quantised number with its scales
_COUNTED: dict[str, Step] = {}


@dataclass(frozen=True)
class Setup:
    """What is planned: a network, what it learns from, and how.

    Args:
        network: its config, as `UniMedVL.config` gives it.
        words: tokens of a text, half of them asked, half answered.
        adapters, rank: as `add_adapters` has them; None trains the weights themselves.
        quantised: "int8" or "nf4": the frozen matrices of the experts under adapters.
    """

    network: dict[str, Any]
    stage: Stage
    settings: Settings = field(default_factory=Settings)
    rates: Rates = field(default_factory=Rates)
    words: int = 64
    adapters: str | None = None
    rank: int = 4
    quantised: str | None = None

    @property
    def cuda(self) -> bool:
        return self.settings.device not in ("cpu", "mps")

    @property
    def ranks(self) -> int:
        local, nodes = self.settings.ranks
        return local * nodes


@dataclass(frozen=True)
class Memory:
    """Bytes of one device, by part; `peak` is the most at one time, which is less than their sum."""

    weights: float
    gradients: float
    optimiser: float
    average: float
    activations: float
    encoding: float
    gathered: float
    peak: float


@dataclass(frozen=True)
class Plan:
    """What a training takes.

    Args:
        parameters, learning: of each part.
        device, host: bytes of one device, and of the memory of one machine.
        tokens: of a sample of each kind: mean, least, most.
        fill: share of a pack's budget that samples take. rejected: share of samples longer than a pack.
        flops: of one update of one device.
        checkpoint, kept: bytes of one, and of all that are kept, with the one being written.
    """

    parameters: dict[str, int]
    learning: dict[str, int]
    device: Memory
    host: dict[str, float]
    tokens: dict[str, tuple[float, int, int]]
    fill: float
    rejected: float
    flops: float
    checkpoint: float
    kept: float

    def steps_a_day(self, flops_per_second: float) -> float:
        """Updates in 24 hours at a sustained speed of each device."""
        return DAY * flops_per_second / self.flops


def plan(setup: Setup) -> Plan:
    """What a training of this setup takes.

    Raises:
        ValueError: no sample fits a pack, an average together with FSDP, or quantised weights that learn.
    """
    settings, stage = setup.settings, setup.stage
    if setup.quantised and setup.adapters is None:
        raise ValueError("Quantised weights cannot learn, expected adapters beside them: add some.")
    if settings.strategy == "fsdp" and stage.ema:
        raise ValueError("An average (ema) cannot follow sharded parameters: set ema to 0, or use 'ddp'.")
    first_pack(setup)
    tokens, fill, rejected, packed = _fill(example(setup), stage.max_tokens)
    step = _step(setup)
    numbers = _numbers(setup)
    device = _device(setup, numbers, step)
    checkpoint = numbers["saved"] + numbers["optimiser"] + numbers["average"]
    return Plan(
        numbers["parameters"], numbers["learning"], device, _host(setup, numbers, device, packed), tokens,
        fill, rejected, step.flops * settings.packs_each, checkpoint, checkpoint * (settings.keep + 1),
    )  # fmt: skip


def example(setup: Setup) -> list[tuple[str, list[Segment]]]:
    """Samples as a stage draws them, with their kind: squares of sizes drawn evenly, and no content."""
    rng, network, stage = Random(0), setup.network, setup.stage
    built = _built(setup)
    prompt = Text(torch.zeros(ceil(setup.words / 2), dtype=torch.long))
    answer = Text(torch.zeros(ceil(setup.words / 2), dtype=torch.long), loss=True)

    def side(use: str, given: tuple[int, int] | None) -> int:
        longest, shortest, stride = built.grids.get(use, built.grids["canvas"])
        low, high = given or (shortest, longest)
        return max(1, rng.randint(low, max(low, high)) // stride)

    def image(noisy: bool) -> Canvas:
        n = side("canvas", stage.canvas)
        return Canvas((n, n), torch.zeros(n * n, built.latent_size), noisy=noisy)

    def view() -> list[Segment]:
        if not network.get("vision"):
            return []
        n, patch = side("view", stage.view), network["vision"].get("patch_size", 14)
        return [View(torch.zeros(n * n, 3 * patch * patch), (n, n))]

    def one(kind: str) -> list[Segment]:
        if kind == "text":
            return [prompt, answer]
        if kind == "image-to-text":
            return [*view(), prompt, answer]
        if kind == "text-to-image":
            return [prompt, image(noisy=True)]
        return [image(noisy=False), *view(), prompt, image(noisy=True)]

    shares = stage.shares()
    kinds = rng.choices(list(shares), list(shares.values()), k=DRAWS)
    return [(kind, one(kind)) for kind in kinds]


def first_pack(setup: Setup) -> list[list[Segment]]:
    """The samples of one pack, the first that is as full as the others."""
    pack: list[list[Segment]] = []
    total = 0
    for _, segments in example(setup):
        length = count_tokens(segments)
        if total + length <= setup.stage.max_tokens:
            pack.append(segments)
            total += length
        elif pack:
            break
    if not pack:
        raise ValueError(
            f"No sample fits max_tokens={setup.stage.max_tokens} of stage {setup.stage.name!r}: raise it, or "
            "draw smaller images."
        )
    return pack


def suggest(setup: Setup, devices: int, gib: float) -> list[tuple[str, Setup]] | None:
    """The fewest changes that make a training fit `devices` of `gib` GiB; None where none of ours does."""
    local = replace(setup.settings, device="cuda", devices=devices, nodes=1, strategy="auto")
    start = replace(setup, settings=local)
    if fits_device(start, gib):
        return []
    mends = [name for name in MENDS if name != "strategy: fsdp, ema: 0" or devices > 1]
    for count in range(1, 6):
        for names in combinations(mends, count):
            if "quantise: nf4" in names and "adapters: both" not in names:
                continue
            changed = start
            try:
                for name in names:
                    changed = MENDS[name](changed)
                if fits_device(changed, gib):
                    return [(name, changed) for name in names]
            except ValueError:
                continue
    return None


def fits_device(setup: Setup, gib: float) -> bool:
    """Whether one device of `gib` GiB holds a training of this setup."""
    numbers = _numbers(setup)
    least = (numbers["weights"] + numbers["optimiser"] + numbers["average"]) / _cut(setup)
    room = USABLE * gib * GIB - CONTEXT
    return least < room and _device(setup, numbers, _step(setup)).peak < room


MENDS = {
    "recompute: true": lambda s: replace(s, settings=replace(s.settings, recompute=True)),
    "strategy: fsdp, ema: 0": lambda s: replace(
        s, settings=replace(s.settings, strategy="fsdp"), stage=replace(s.stage, ema=0.0)
    ),
    "ema: 0": lambda s: replace(s, stage=replace(s.stage, ema=0.0)),
    "max_tokens: a half": lambda s: replace(s, stage=_halved(s)),
    "adapters: both": lambda s: replace(s, adapters=s.adapters or "both", rank=max(s.rank, 16)),
    "precision: bf16-true": lambda s: replace(s, settings=replace(s.settings, precision="bf16-true")),
    "quantise: nf4": lambda s: replace(s, quantised="nf4"),
}


def _halved(setup: Setup) -> Stage:
    stage = replace(setup.stage, max_tokens=setup.stage.max_tokens // 2)
    if _fill(example(setup), stage.max_tokens)[2] > _fill(example(setup), setup.stage.max_tokens)[2]:
        raise ValueError("Samples that fitted a pack would not fit half of it.")
    return stage


def _fill(
    samples: Sequence[tuple[str, list[Segment]]], budget: int
) -> tuple[dict[str, tuple[float, int, int]], float, float, float]:
    """Tokens by kind, fill of packs, share of samples that are too long, and bytes of a pack's content."""
    lengths: dict[str, list[int]] = {}
    packs, open_, rejected, content = 0, 0, 0, 0
    filled = 0
    for kind, segments in samples:
        length = count_tokens(segments)
        lengths.setdefault(kind, []).append(length)
        if length > budget:
            rejected += 1
            continue
        content += sum(_content(segment) for segment in segments)
        if open_ + length > budget:
            packs, filled, open_ = packs + 1, filled + open_, 0
        open_ += length
    tokens = {kind: (sum(n) / len(n), min(n), max(n)) for kind, n in lengths.items()}
    fill = filled / (packs * budget) if packs else open_ / budget
    return tokens, fill, rejected / len(samples), content / max(1, packs)


def _content(segment: Segment) -> int:
    if isinstance(segment, View):
        return segment.patches.numel() * 4
    return segment.latents.numel() * 64 * 4 if isinstance(segment, Canvas) else 0  # type: ignore[union-attr]


def _step(setup: Setup) -> Step:
    """The step of a setup; what was counted once is kept."""
    s = setup.settings
    precision = s.forward_precision
    precision = "bf16-true" if s.strategy == "fsdp" and "bf16" in precision else precision
    stage = replace(setup.stage, ema=0.0)
    key = repr(
        (setup.network, stage, setup.words, setup.adapters, setup.rank, precision, s.recompute, setup.cuda)
    )
    if key not in _COUNTED:
        _COUNTED[key] = tally(
            setup.network, first_pack(setup), precision=precision, frozen=stage.frozen, recompute=s.recompute,
            detach_understanding=stage.detach_understanding, adapters=setup.adapters, rank=setup.rank,
            cuda=setup.cuda,
        )  # fmt: skip
    return _COUNTED[key]


@lru_cache(maxsize=8)
def _built_from(key: str, adapters: str | None, rank: int) -> UniMedVL:
    with torch.device("meta"):
        network = from_config(json.loads(key))
        if adapters is not None:
            network.adapter_base = ""
            add_adapters(network, adapters, rank=rank)
    return network


def _built(setup: Setup) -> UniMedVL:
    return _built_from(json.dumps(setup.network, sort_keys=True), setup.adapters, setup.rank)


def _numbers(setup: Setup) -> dict[str, Any]:
    """Parameters and the bytes that follow from their numbers alone, before they are cut over ranks."""
    network, stage, rates = _built(setup), setup.stage, setup.rates
    size = 2 if setup.settings.forward_precision == "bf16-true" else 4
    learning = dict.fromkeys(PARTS, 0)
    weights = optimiser = largest = 0.0
    for name, p in network.named_parameters():
        learns = not fits(name, [*stage.frozen, "autoencoder"])
        learns = learns and (".lora_" in name or setup.adapters is None)
        small = setup.quantised and ".base_layer." in name or setup.quantised and _of_an_expert(name, p)
        weights += p.numel() * (BYTES[setup.quantised] if small and p.ndim == 2 else size)  # type: ignore[index]
        if learns:
            learning[part_of(name)] += p.numel()
            muon = rates.optimizer == "muon" and p.ndim == 2 and name.startswith(MATRICES)
            optimiser += p.numel() * size * (1 if muon else 2)
            largest = max(largest, p.numel())
    weights += sum(b.numel() * b.element_size() for b in network.buffers())
    total = sum(learning.values())
    layer = max(sum(p.numel() for p in layer.parameters()) for layer in network.decoder.layers)
    return {
        "parameters": count_parameters(network), "learning": learning, "weights": weights,
        "gradients": total * size, "optimiser": optimiser, "average": weights if stage.ema else 0.0,
        "saved": weights, "layer": layer, "update": total * size if setup.cuda else largest * size,
    }  # fmt: skip


def _of_an_expert(name: str, p: torch.Tensor) -> bool:
    return name.startswith("decoder.layers.") and p.ndim == 2 and ".lora_" not in name


def _cut(setup: Setup) -> int:
    return setup.ranks if setup.settings.strategy == "fsdp" else 1


def _device(setup: Setup, numbers: dict[str, Any], step: Step) -> Memory:
    """Bytes of one device."""
    cut = _cut(setup)
    kept = (numbers["weights"] + numbers["optimiser"] + numbers["average"]) / cut
    gathered = 0.0
    if cut > 1:  # two layers whole, one in use and one on its way, and the gradient of one
        gathered = numbers["layer"] * (2 * 2 + 4)
    elif setup.ranks > 1:  # the buckets in which DDP adds up gradients
        gathered = numbers["gradients"]
    gradients = numbers["gradients"] / cut
    stepping = step.activations + gradients + gathered if cut > 1 else step.peak + gathered
    updating = gradients + gathered + numbers["update"] / cut
    peak = kept + max(stepping, updating, step.encoding)
    return Memory(
        numbers["weights"] / cut, gradients, numbers["optimiser"] / cut, numbers["average"] / cut,
        step.activations, step.encoding, gathered, peak,
    )  # fmt: skip


def _host(setup: Setup, numbers: dict[str, Any], device: Memory, packed: float) -> dict[str, float]:
    """Bytes of one machine's memory."""
    local, workers = setup.settings.ranks[0], setup.settings.workers
    rows = {
        "processes": local * (PROCESS if setup.cuda else 0.3 * PROCESS),
        "packs": local * (workers or 1) * 3 * packed,  # one being made, two waiting
        "workers": local * workers * 0.3 * PROCESS,
    }
    if setup.cuda:
        rows["weights while loading"] = local * numbers["weights"]
    else:
        rows["training itself"] = local * device.peak
    return rows
