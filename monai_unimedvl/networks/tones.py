# SPDX-License-Identifier: Apache-2.0
"""A tone curve a token: how an edit may recolour its source pixel by pixel, before the head corrects it.

Masks, stains and other contrasts are, to a first guess, functions of the source's grey level that depend on
the instruction and the place. Through the transformer alone each pixel would have to be carried and bent one
by one. Only for a linear codec, whose latents are pixels in another basis.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from monai_unimedvl.networks.autoencoder import PatchCodec


class Tones(nn.Module):
    """h (Z, D), source latents (Z, C) -> change of the latents (Z, C), zero when new.

    Args:
        levels: support points of the curve over grey levels -1 to 1, linear between; each has a red, a green
            and a blue change.
    """

    def __init__(self, hidden_size: int, levels: int) -> None:
        super().__init__()
        self.levels = levels
        self.curve = nn.Linear(hidden_size, 3 * levels)
        nn.init.zeros_(self.curve.weight)
        nn.init.zeros_(self.curve.bias)

    def forward(self, h: Tensor, source: Tensor, codec: PatchCodec) -> Tensor:
        """The change that the curves of `h` make to `source`, in the dtype of `source`."""
        curve = self.curve(h).to(source.dtype).unflatten(-1, (self.levels, 3))
        with torch.autocast(source.device.type, enabled=False):  # grey levels are not halved in training
            grey = codec.pixels(source).mean(-1).clamp(-1, 1)  # (Z, p*p)
            place = (grey + 1) * 0.5 * (self.levels - 1)
            points = torch.arange(self.levels, dtype=place.dtype, device=place.device)
            near = F.relu(1 - (place.unsqueeze(-1) - points).abs())  # (Z, p*p, levels)
            return codec.project(near @ curve)
