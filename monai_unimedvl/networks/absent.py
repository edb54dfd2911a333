# SPDX-License-Identifier: Apache-2.0
"""A network without the parts that a job does not need: answering draws nothing, so it needs no generation
expert and no autoencoder. In their place stands what says so when it is called.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from monai_unimedvl.networks.autoencoder import Autoencoder, autoencoder_from_config
from monai_unimedvl.networks.decoder import Decoder
from monai_unimedvl.networks.layers import PerExpert
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.networks.vision import Vision

PARTS = ("understanding", "generation", "vision", "autoencoder")
PIXELWISE = ("tones", "details", "strokes")  # what a network draws with in pixels, by its settings
DRAWING = ("time_embed", "latent_in", "latent_out", "latent_gate")  # beside the expert


class Absent(nn.Module):
    """Where a part would be that was not loaded.

    Args:
        part: one of `PARTS`.
    """

    def __init__(self, part: str) -> None:
        super().__init__()
        self.part = part

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        """Always raises ValueError: the part is not there."""
        raise ValueError(
            f"This needs the {self.part} part of the network, which was not loaded: load it with "
            f"parts=(..., {self.part!r}), or with all parts."
        )

    @property
    def weight(self) -> Tensor:
        """Raises ValueError, as calling it does."""
        return self.forward()

    def extra_repr(self) -> str:
        """The part, for print."""
        return self.part


class AbsentAutoencoder(Autoencoder):
    """The sizes of an autoencoder that was not loaded; encoding and decoding raise ValueError.

    Args:
        config: of the autoencoder that it stands for.
    """

    def __init__(self, config: dict[str, Any]) -> None:
        super().__init__()
        self.config = dict(config)
        if config["kind"] == "flux":  # known without four seconds of import
            self.latent_channels = config.get("latent_channels", 16)
            self.downsample = 2 ** (len(config.get("multipliers", (1, 2, 4, 4))) - 1)
        else:
            with torch.device("meta"):
                whole = autoencoder_from_config(dict(config))
            self.latent_channels, self.downsample = whole.latent_channels, whole.downsample
            self.spatial_dims = whole.spatial_dims
        self.absent = Absent("autoencoder")

    def encode(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Raises ValueError."""
        return self.absent(), self.absent()

    def decode(self, z: Tensor) -> Tensor:
        """Raises ValueError."""
        return self.absent()


def build_parts(config: dict[str, Any], parts: tuple[str, ...]) -> UniMedVL:
    """An untrained network of the given sizes (see `from_config`) with the named parts only.

    Raises:
        ValueError: parts that make no network together.
    """
    config = dict(config)
    pixelwise = any(config.get(name, 0) for name in PIXELWISE)
    if "generation" not in parts:
        config |= dict.fromkeys(PIXELWISE, 0)
    elif pixelwise and "autoencoder" not in parts:
        raise ValueError(
            f"This network draws in the basis of its autoencoder, but parts={parts} leave it out: "
            "add 'autoencoder'."
        )
    decoder, vision = Decoder(**config.pop("decoder")), config.pop("vision", None)
    inside = config.pop("autoencoder")
    autoencoder = autoencoder_from_config(inside) if "autoencoder" in parts else AbsentAutoencoder(inside)
    reads = vision is not None and "vision" in parts
    network = UniMedVL(decoder, Vision(**vision) if reads else None, autoencoder, **config)
    if vision is not None and not reads:
        network.connector = Absent("vision")
    if "generation" not in parts:
        for twins in [module for module in network.modules() if isinstance(module, PerExpert)]:
            twins.generation = Absent("generation")
        for name in DRAWING:
            if getattr(network, name, None) is not None:
                setattr(network, name, Absent("generation"))
        for name in ("latent_table", "latent_variance"):
            if name in dict(network.named_buffers(recurse=False)):
                setattr(network, name, None)
    return network


def absent_parts(network: nn.Module) -> list[str]:
    """The parts that were left out, in the order of `PARTS`."""
    found = {module.part for module in network.modules() if isinstance(module, Absent)}
    return [part for part in PARTS if part in found]
