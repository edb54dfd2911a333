# SPDX-License-Identifier: Apache-2.0
"""The only place where a loss is written: cross entropy by token, flow by latent patch.

The losses are BAGEL's (arXiv 2505.14683), their weights UniMedVL's (arXiv 2510.15710, Table 12).
  L tokens   N labels   Z latent tokens   M noisy ones   C numbers a latent token   S samples
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from monai_unimedvl import flow
from monai_unimedvl.sequence import Canvas, Marks, PackedSequence, Segment, View, pack
from monai_unimedvl.training.parts import part_of

if TYPE_CHECKING:
    from monai_unimedvl.networks.unimedvl import UniMedVL

REWEIGHTINGS = ("token", "root", "segment")
NORMALISERS = ("pack", "ranks")
MOST = 12.0  # what an edit weighs at most, see `Objective.relative`
VALIDATION = 2_000_003  # added to numbers of validation packs, so that they share no seed with training


class Losses(NamedTuple):
    """Scalars: `text`, mean over labels; `flow`, mean over noisy patches and channels; their weighted sum.

    A pack without labels, or without noisy canvases, has 0 there. `by_sample` (S, 4), without gradient: of
    each sample the sum of its label losses, its labels, the sum of its patch losses, its noisy patches.
    """

    text: Tensor
    flow: Tensor
    loss: Tensor
    by_sample: Tensor


class Draw(NamedTuple):
    """What chance decides in a step: times (Z,), 0 on clean tokens, and noise (Z, C)."""

    times: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Objective:
    """Weights of the two losses, and what the means are taken over.

    Args:
        text_weight, flow_weight: 0.25 and 1 in UniMedVL (paper, Table 12).
        reweight_text: what a label weighs. "token" (or False): 1. "root" (or True): 1/sqrt(n) of the n labels
            of its segment, so that long answers do not rule (the reference's `ce_loss_reweighting`).
            "segment": 1/n, each answer counts the same.
        normalise: "pack": means are over this pack, so that two ranks are one rank that accumulates two
            packs. "ranks": means are over the packs of all ranks of the step, as in the reference.
        detach_understanding: no gradient through understanding states (the reference's `freeze_und`).
        relative: what a drawing that starts from a source weighs: (size of latents / how far the target is
            from its source) to this power, at most `MOST`; 0 weighs all alike. An edit that changes little
            is else drowned by those that change much, and learns to blur what it should keep.
        touch: give every parameter a gradient, zero if need be, also where a pack has no image or no words
            to learn. Data-parallel and sharded training wait for all of them, and an optimiser that skips a
            parameter on one rank alone would not learn what one process learns.

    Raises:
        ValueError: an unknown reweighting or normaliser, or a weight below 0.
    """

    text_weight: float = 0.25
    flow_weight: float = 1.0
    reweight_text: bool | str = False
    normalise: str = "pack"
    detach_understanding: bool = False
    relative: float = 0.0
    touch: bool = True

    def __post_init__(self) -> None:
        if isinstance(self.reweight_text, bool):
            object.__setattr__(self, "reweight_text", REWEIGHTINGS[self.reweight_text])
        for name, known in (("reweight_text", REWEIGHTINGS), ("normalise", NORMALISERS)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"Objective got {name}={getattr(self, name)!r}, expected one of {', '.join(known)}: "
                    "use one of them."
                )
        for name in ("text_weight", "flow_weight", "relative"):
            if (value := getattr(self, name)) < 0:
                raise ValueError(f"Objective got {name}={value}, expected at least 0: 0 switches it off.")

    def __call__(
        self,
        network: UniMedVL,
        samples: Sequence[Sequence[Segment]],
        marks: Marks,
        generator: torch.Generator | None = None,
    ) -> Losses:
        """Losses of one pack: encodes images, draws times and noise, runs the network once.

        Args:
            samples: lists of segments; canvases may still be images.
            generator: source of times and noise, on the CPU.
        """
        whole = with_all_kinds(network, samples) if self.touch else samples
        seq = pack(network.encode(whole), marks).to(network.decoder.embed.weight.device)
        return self.measure(network, seq, draw(seq, network.timestep_shift, generator), len(samples))

    def measure(
        self, network: UniMedVL, seq: PackedSequence, chance: Draw | None, num_samples: int | None = None
    ) -> Losses:
        """Losses of a pack for given times and noise; None where the pack has no canvases."""
        clean, noisy = seq.latents, seq.noisy
        if clean is not None and chance is not None:
            noised = flow.add_noise(clean, chance.noise, chance.times.unsqueeze(-1))
            seq = seq.with_latents(noised, chance.times)
        if self.detach_understanding:
            seq = seq.detached()
        prediction = network(seq)
        count = (num_samples or int(seq.layout.sample.max()) + 1) if len(seq) else 0
        by_sample = prediction.hidden.new_zeros(count, 4, dtype=torch.float32)

        each, weights = self._text(network, prediction.hidden, seq)  # (N,), (N,)
        _collect(by_sample, 0, each, seq.layout.sample[seq.label_at])
        text = self._mean(each * weights, weights)
        error = prediction.hidden.new_zeros(0, dtype=torch.float32)  # (M,)
        if clean is not None and chance is not None and bool(noisy.any()):
            target = flow.velocity(clean, chance.noise)[noisy]
            squares = (prediction.velocity[noisy].float() - target.float()).square()  # type: ignore[index]
            error = squares.mean(-1)
            _collect(by_sample, 2, error, seq.layout.sample[seq.latent_at[noisy]])
        drawn = self._mean(error * self._worth(network, seq, clean), torch.ones_like(error))
        loss = self.text_weight * text + self.flow_weight * drawn
        if self.touch:
            loss = loss + 0 * _everything(network, prediction.hidden, prediction.velocity)
        return Losses(text, drawn, loss, by_sample)

    def _text(self, network: UniMedVL, hidden: Tensor, seq: PackedSequence) -> tuple[Tensor, Tensor]:
        """Cross entropy (N,) of each label, and its weight."""
        if not len(seq.labels):
            return hidden.new_zeros(0, dtype=torch.float32), seq.label_weights
        logits = network.logits(hidden[seq.label_at]).float()
        power = REWEIGHTINGS.index(str(self.reweight_text))  # the pack has 1/sqrt(n)
        return F.cross_entropy(logits, seq.labels, reduction="none"), seq.label_weights**power

    def _worth(self, network: UniMedVL, seq: PackedSequence, clean: Tensor | None) -> Tensor | float:
        """What the patches (M,) of each drawing weigh, by how far it is from the source it starts from."""
        if not self.relative or clean is None or seq.bases is None or network.prediction != "image":
            return 1.0
        size = network.latent_variance.mean()  # type: ignore[union-attr, operator]
        change = (clean - seq.bases).float().square().mean(-1)  # (Z,)
        far = torch.cat([part.mean().expand(len(part)) for part in change.split(list(seq.canvas_lengths))])
        worth = (size / far.clamp(min=1e-12)).pow(self.relative).clamp(max=MOST)
        return torch.where(seq.based, worth, torch.ones_like(worth))[seq.noisy]

    def _mean(self, weighted: Tensor, weights: Tensor) -> Tensor:
        """The weighted mean over the pack, or this rank's share of that over all ranks; 0 of nothing."""
        total = weights.sum()
        if self.normalise == "ranks" and dist.is_available() and dist.is_initialized():
            dist.all_reduce(total)
            total = total / dist.get_world_size()  # gradients of the ranks are averaged afterwards
        return weighted.sum() / torch.where(total > 0, total, torch.ones_like(total))


def _collect(by_sample: Tensor, column: int, values: Tensor, sample: Tensor) -> None:
    """Add values and their number to the row of their sample."""
    values = values.detach().to(by_sample.dtype)
    by_sample[:, column].index_add_(0, sample, values)
    by_sample[:, column + 1].index_add_(0, sample, torch.ones_like(values))


def with_all_kinds(network: UniMedVL, samples: Sequence[Sequence[Segment]]) -> list[Sequence[Segment]]:
    """The samples, and one more of a blank view or clean canvas if no other sample has one.

    Ranks that gather parameters layer by layer must all come through each layer. No other sample sees the
    blank one, and it has no loss.
    """
    kept = [segment for segments in samples for segment in segments if not segment.dropped]
    blank: list[Segment] = []
    if network.vision is not None and not any(isinstance(segment, View) for segment in kept):
        blank.append(View(torch.zeros(1, network.vision.patch.in_features), (1, 1)))
    if not any(isinstance(segment, Canvas) for segment in kept):
        blank.append(Canvas((1, 1), torch.zeros(1, network.latent_size)))
    return [*samples, blank] if blank else list(samples)


def _everything(network: UniMedVL, hidden: Tensor, velocity: Tensor | None) -> Tensor:
    """A sum that every parameter of the network has a part in."""
    total = hidden.float().sum() if velocity is None else hidden.float().sum() + velocity.float().sum()
    heads = (p for name, p in network.named_parameters() if p.requires_grad and part_of(name) == "heads")
    return total + sum(p.float().sum() for p in heads)


def draw(seq: PackedSequence, shift: float, generator: torch.Generator | None = None) -> Draw | None:
    """Logit-normal times, one a noisy canvas, and noise for every latent token; None without canvases."""
    if seq.latents is None:
        return None
    each = flow.draw_times(len(seq.canvas_lengths), shift, generator)
    times = each.repeat_interleave(torch.tensor(seq.canvas_lengths)).to(seq.latents.device)
    noise = torch.randn(seq.latents.shape, generator=generator).to(seq.latents)
    return Draw(times * seq.noisy, noise)


def pack_generator(seed: int, number: int) -> torch.Generator:
    """The source of times and noise of a pack, by its number in the order of training over all ranks."""
    return torch.Generator().manual_seed(seed * 1_000_003 + number)
