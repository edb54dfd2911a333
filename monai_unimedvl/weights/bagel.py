# SPDX-License-Identifier: Apache-2.0
"""What a folder needs beside the reference's files so that other runtimes take it for BAGEL.

vLLM and vLLM-Omni read `config.json` (model type "bagel", with the configs of the parts inside),
`preprocessor_config.json` and the index of all safetensors files; ComfyUI's nodes read the reference's own
files and the slow tokenizer's `vocab.json` and `merges.txt`. All take the FLUX autoencoder's sizes for
granted, and one `ema.safetensors`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from monai_unimedvl.tokenizer import Tokenizer

FLUX = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 16}


def runtime_configs(configs: Mapping[str, Mapping[str, Any]], eos: int | None) -> dict[str, dict[str, Any]]:
    """Further config files by name.

    Args:
        configs: those of the reference, see `config_to_upstream`.
        eos: id of the mark that ends a text, or None where the tokenizer is not known.

    Raises:
        ValueError: an autoencoder of other sizes than these runtimes have built in.
    """
    llm, vit, vae = (configs[f"{name}_config.json"] for name in ("llm", "vit", "vae"))
    odd = {name: vae[name] for name, size in FLUX.items() if vae[name] != size}
    if odd:
        raise ValueError(
            f"This network's autoencoder has {odd}, but runtimes of BAGEL have the FLUX sizes built in: "
            "convert to layout 'upstream' instead."
        )
    whole = {
        "architectures": ["BagelForConditionalGeneration"],
        "model_type": "bagel",
        "torch_dtype": "bfloat16",
        "visual_gen": True,
        "visual_und": True,
        "llm_config": dict(llm),
        "vit_config": dict(vit),
        "vae_config": {"z_channels": vae["z_channels"], "downsample": vae["downsample"]},
        **configs["bagel_config.json"],
    }
    side = vit["image_size"]
    pictures = {
        "image_processor_type": "SiglipImageProcessor",
        "do_convert_rgb": True, "do_resize": True, "do_rescale": True, "do_normalize": True,
        "rescale_factor": 1 / 255, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
        "size": {"height": side, "width": side},
    }  # fmt: skip
    ends = {} if eos is None else {"eos_token_id": eos, "pad_token_id": eos}
    return {
        "config.json": whole,
        "preprocessor_config.json": pictures,
        "generation_config.json": {"do_sample": False, **ends},
    }


def runtime_index(files: Mapping[str, Mapping[str, Tensor]], sizes: Mapping[str, int]) -> dict[str, Any]:
    """The content of model.safetensors.index.json: which file holds which weight.

    Args:
        files: stem of a file -> its weights by name.
        sizes: bytes of each stem's file.
    """
    return {
        "metadata": {"total_size": sum(sizes.values())},
        "weight_map": {name: f"{stem}.safetensors" for stem, held in files.items() for name in held},
    }


def save_slow_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """vocab.json and merges.txt, which the reference's own tokenizer class reads, beside tokenizer.json."""
    tokenizer.engine.model.save(str(folder))
    config = folder / "tokenizer_config.json"
    known = json.loads(config.read_text("utf8")) if config.is_file() else {}
    known.setdefault("tokenizer_class", "Qwen2Tokenizer")
    config.write_text(json.dumps(known, indent=2) + "\n", "utf8")
