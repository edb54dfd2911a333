# SPDX-License-Identifier: Apache-2.0
"""Tiny networks as monai-generative 0.2.3 built them: their arguments, weights by rule, inputs, outputs.

`python tests/old_networks.py` with monai-generative==0.2.3 installed writes tests/golden/generative.json:
the names and shapes of the real package's weights, and the numbers that it computes with them.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden" / "generative.json"

AUTOENCODER = {
    "num_channels": [4, 8],
    "latent_channels": 2,
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "attention_levels": [False, True],
}
DENOISER = {
    "in_channels": 2,
    "num_channels": [4, 8],
    "num_res_blocks": 1,
    "norm_num_groups": 4,
    "attention_levels": [False, True],
    "num_head_channels": 4,
}
CONDITIONED = {"with_conditioning": True, "cross_attention_dim": 6, "transformer_num_layers": 2}
CONTROL = {"conditioning_embedding_in_channels": 1, "conditioning_embedding_num_channels": [4]}

CASES: dict[str, tuple[str, dict[str, Any]]] = {
    "autoencoder": ("AutoencoderKL", {"spatial_dims": 2, **AUTOENCODER}),
    "autoencoder of volumes": ("AutoencoderKL", {"spatial_dims": 3, **AUTOENCODER}),
    "autoencoder, transposed": (
        "AutoencoderKL",
        {"spatial_dims": 2, **AUTOENCODER, "use_convtranspose": True, "use_checkpointing": True},
    ),
    "autoencoder, no attention": (
        "AutoencoderKL",
        {
            "spatial_dims": 2,
            **AUTOENCODER,
            "attention_levels": [False, False],
            "with_encoder_nonlocal_attn": False,
            "with_decoder_nonlocal_attn": False,
        },
    ),
    "unet": ("DiffusionModelUNet", {"spatial_dims": 2, "out_channels": 1, **DENOISER}),
    "unet, conditioned": (
        "DiffusionModelUNet",
        {
            "spatial_dims": 2,
            "out_channels": 1,
            **DENOISER,
            **CONDITIONED,
            "num_class_embeds": 3,
            "upcast_attention": True,
            "dropout_cattn": 0.5,
        },
    ),
    "unet of volumes, residual steps": (
        "DiffusionModelUNet",
        {"spatial_dims": 3, "out_channels": 1, **DENOISER, "resblock_updown": True},
    ),
    "controlnet": ("ControlNet", {"spatial_dims": 2, **DENOISER, **CONTROL}),
    "controlnet, conditioned": ("ControlNet", {"spatial_dims": 2, **DENOISER, **CONTROL, **CONDITIONED}),
}


def wave(shape: tuple[int, ...], phase: float, scale: float = 1.0) -> Tensor:
    """Numbers that look like chance and are the same everywhere, in the shape given."""
    places = torch.arange(math.prod(shape), dtype=torch.float64)
    return (scale * torch.sin(places * 12.9898 + phase)).reshape(shape).float()


def filled(shapes: dict[str, list[int]]) -> dict[str, Tensor]:
    """Weights by rule, none of them zero on the whole: names -> tensors of the shapes given."""
    return {key: wave(tuple(shape), phase, 0.5) for phase, (key, shape) in enumerate(sorted(shapes.items()))}


@torch.no_grad()
def outputs(
    network: nn.Module, kind: str, config: dict[str, Any], dtype: torch.dtype = torch.float32
) -> list[Tensor]:
    """All that an old or a new network computes of one input, flat."""
    side = (8,) * config["spatial_dims"]
    if kind == "AutoencoderKL":
        mean, sigma = network.encode(wave((2, 1, *side), 0.3).to(dtype))
        return [mean.flatten(), sigma.flatten(), network.decode(mean).flatten()]
    arguments: dict[str, Any] = {"x": wave((2, 2, *side), 0.3).to(dtype), "timesteps": torch.tensor([3, 700])}
    if config.get("with_conditioning"):
        arguments["context"] = wave((2, 3, config["cross_attention_dim"]), 0.7).to(dtype)
    if config.get("num_class_embeds"):
        arguments["class_labels"] = torch.tensor([0, 2])
    if kind == "ControlNet":
        arguments |= {"controlnet_cond": wave((2, 1, *side), 0.9).to(dtype), "conditioning_scale": 0.5}
        down, middle = network(**arguments)
        return [*(x.flatten() for x in down), middle.flatten()]
    return [network(**arguments).flatten()]


def old_case(name: str) -> dict[str, Any]:
    """Shapes of the real package's weights, and every 7th number of what it computes."""
    from generative.networks import nets  # the real package, at hand only where it is compared

    kind, config = CASES[name]
    network = getattr(nets, kind)(**config).eval()
    shapes = {key: list(x.shape) for key, x in network.state_dict().items()}
    network.load_state_dict(filled(shapes))
    numbers = torch.cat(outputs(network, kind, config))[::7]
    return {"shapes": shapes, "numbers": [float(f"{x:.7g}") for x in numbers.tolist()]}


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps({name: old_case(name) for name in CASES}, separators=(",", ":")) + "\n")
