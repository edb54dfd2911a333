# SPDX-License-Identifier: Apache-2.0
"""A network of a few thousand numbers in float64 and segments that fit it, for laws."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.sequence import Canvas, Marks, Text, View

MARKS = Marks(text_start=20, text_end=21, image_start=22, image_end=23)
CONFIG: dict[str, Any] = {
    "decoder": {
        "vocab_size": 24, "hidden_size": 16, "mlp_dim": 24, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": 2, "rope_theta": 100.0,
    },
    "vision": {
        "hidden_size": 8, "mlp_dim": 12, "num_layers": 2, "num_heads": 2, "patch_size": 2, "grid_side": 4,
    },
    "autoencoder": {"kind": "patch", "patch": 2, "latent_channels": 3},
    "latent_side": 4,
}  # fmt: skip


def tiny_network(seed: int = 0, decoder: dict[str, Any] | None = None, **changes: Any) -> UniMedVL:
    """Every parameter is drawn, so that no expert, gate or output is at its neutral start."""
    network = from_config({**CONFIG, "decoder": {**CONFIG["decoder"], **(decoder or {})}, **changes}).double()
    generator = torch.Generator().manual_seed(seed)
    for name, p in network.named_parameters():
        if not name.startswith("autoencoder."):
            p.data.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64) * 0.3)
    return network


def numbers(*shape: int, seed: int = 0) -> Tensor:
    """Normal numbers in float64."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def text(*ids: int, **options: Any) -> Text:
    """Words."""
    return Text(torch.tensor(ids, dtype=torch.long), **options)


def view(h: int, w: int, seed: int = 1, **options: Any) -> View:
    """An image to understand, of h x w patches."""
    return View(numbers(h * w, 12, seed=seed), (h, w), **options)


def canvas(h: int, w: int, seed: int = 2, **options: Any) -> Canvas:
    """An image in latent space, of h x w tokens."""
    return Canvas((h, w), numbers(h * w, 12, seed=seed), **options)
