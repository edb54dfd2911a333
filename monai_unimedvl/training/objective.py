# SPDX-License-Identifier: Apache-2.0
"""The only place where a loss is written: cross entropy by token, flow by latent patch.

The losses are BAGEL's (arXiv 2505.14683), their weights UniMedVL's (arXiv 2510.15710, Table 12).
  L tokens   N labels   Z latent tokens   C numbers a latent token
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from monai_unimedvl import flow
from monai_unimedvl.sequence import Marks, PackedSequence, Segment, pack

if TYPE_CHECKING:
    from monai_unimedvl.networks.unimedvl import UniMedVL


class Losses(NamedTuple):
    """Scalars: `text`, mean over labels; `flow`, mean over noisy patches and channels; their weighted sum.

    A pack without labels, or without noisy canvases, has 0 there.
    """

    text: Tensor
    flow: Tensor
    loss: Tensor


class Draw(NamedTuple):
    """What chance decides in a step: times (Z,), 0 on clean tokens, and noise (Z, C)."""

    times: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Objective:
    """Weights of the two losses.

    Args:
        text_weight, flow_weight: 0.25 and 1 in UniMedVL (paper, Table 12).
        reweight_text: weigh each label by 1/sqrt(labels of its segment), so that long answers do not rule.
    """

    text_weight: float = 0.25
    flow_weight: float = 1.0
    reweight_text: bool = False

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
        seq = pack(network.encode(samples), marks).to(network.decoder.embed.weight.device)
        return self.measure(network, seq, draw(seq, network.timestep_shift, generator))

    def measure(self, network: UniMedVL, seq: PackedSequence, chance: Draw | None) -> Losses:
        """Losses of a pack for given times and noise; None where the pack has no canvases."""
        clean = seq.latents
        if clean is not None and chance is not None:
            noised = flow.add_noise(clean, chance.noise, chance.times.unsqueeze(-1))
            seq = seq.with_latents(noised, chance.times)
        prediction = network(seq)
        text = self._text(network, prediction.hidden, seq)
        drawn = prediction.hidden.new_zeros(())
        if clean is not None and chance is not None and bool(seq.noisy.any()):
            target = flow.velocity(clean, chance.noise)[seq.noisy]
            drawn = (prediction.velocity[seq.noisy].float() - target.float()).square().mean()  # type: ignore[index]
        return Losses(text, drawn, self.text_weight * text + self.flow_weight * drawn)

    def _text(self, network: UniMedVL, hidden: Tensor, seq: PackedSequence) -> Tensor:
        if not len(seq.labels):
            return hidden.new_zeros(())
        logits = network.logits(hidden[seq.label_at]).float()
        each = F.cross_entropy(logits, seq.labels, reduction="none")  # (N,)
        if self.reweight_text:
            return (each * seq.label_weights).sum() / seq.label_weights.sum()
        return each.mean()


def draw(seq: PackedSequence, shift: float, generator: torch.Generator | None = None) -> Draw | None:
    """Logit-normal times, one a noisy canvas, and noise for every latent token; None without canvases."""
    if seq.latents is None:
        return None
    each = flow.draw_times(len(seq.canvas_lengths), shift, generator)
    times = each.repeat_interleave(torch.tensor(seq.canvas_lengths)).to(seq.latents.device)
    noise = torch.randn(seq.latents.shape, generator=generator).to(seq.latents)
    return Draw(times * seq.noisy, noise)
