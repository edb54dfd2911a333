# SPDX-License-Identifier: Apache-2.0
"""Write a network as a folder that `load` reads: whole or not at all."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from monai_unimedvl.atomic import into_folder
from monai_unimedvl.networks.absent import absent_parts
from monai_unimedvl.networks.quantised import is_quantised
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights import bagel, upstream
from monai_unimedvl.weights.checkpoint import NAME
from monai_unimedvl.weights.headers import AUTOENCODER, GENERATION
from monai_unimedvl.weights.loading import words_of
from monai_unimedvl.weights.source import FORMAT, VERSION, is_ours

LAYOUTS = ("ours", "upstream", "bagel")
SHARD = 5_000_000_000  # bytes


def save(
    network: UniMedVL,
    tokenizer: Tokenizer | None,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int | None = None,
    layout: str = "ours",
) -> None:
    """Write a network as a folder that `load` reads. Whole or not at all: files are made aside, then moved.

    Args:
        tokenizer: None leaves a tokenizer that is in the folder as it is.
        dtype: of the weights in the files, for example torch.bfloat16; buffers of the autoencoder (the patch
            codec's basis) keep theirs. None keeps all.
        max_shard_bytes: weights beyond that go to a further file, and what only drawing needs to files of its
            own; a single tensor is never cut. None is 5 GB in our layout, and no limit in the others, whose
            readers want one file.
        layout: "ours" (config.json, model*.safetensors), "upstream" (ema.safetensors, ae.safetensors and
            the config files that BAGEL and UniMedVL read), or "bagel" (the same, and what vLLM-Omni and
            ComfyUI ask for beside it).

    Raises:
        ValueError: unknown layout, not a floating dtype, a folder that is a file, holds the other layout or
            cannot take the weights, a network with adapters, or one that the reference has no place for.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file, expected a folder: choose another name.")
    if layout not in LAYOUTS:
        raise ValueError(f"save got layout={layout!r}, expected one of {', '.join(LAYOUTS)}.")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(
            f"save got dtype={dtype}, expected a floating one: use torch.bfloat16 or torch.float16."
        )
    if gone := absent_parts(network):
        raise ValueError(
            f"The network was loaded without its {', '.join(gone)} part: load all parts before saving."
        )
    if is_quantised(network):
        raise ValueError(
            "The network holds quantised weights, expected whole ones: load without quantize before saving."
        )
    weights = network.state_dict()
    if any(".lora_" in name for name in weights):
        raise ValueError(
            "The network has adapters beside its weights, expected weights alone: call merge_adapters first, "
            "or save_adapters for the adapters alone."
        )
    if any(x.is_meta for x in weights.values()):
        raise ValueError("The network has no content (meta device): load or initialise it before saving.")
    kept = {f"autoencoder.{name}" for name, _ in network.autoencoder.named_buffers()}
    config: dict[str, dict[str, Any]]
    if layout == "ours":
        words = words_of(folder) if tokenizer is None else tokenizer.digest()
        config = {"config.json": our_config(network, words)}
        parts = {"model": weights}
    else:
        config = upstream.config_to_upstream(network.config)
        inner = {
            k.removeprefix("autoencoder."): x for k, x in weights.items() if k.startswith("autoencoder.")
        }
        parts = {"ema": upstream.to_upstream(weights), "ae": upstream.autoencoder_to_upstream(inner)}
    dtypes = {
        name: dtype if dtype is not None and x.is_floating_point() and name not in kept else x.dtype
        for part in parts.values()
        for name, x in part.items()
    }
    sizes = {
        stem: sum(x.numel() * dtypes[name].itemsize for name, x in part.items())
        for stem, part in parts.items()
    }
    if layout == "bagel":
        config |= bagel.runtime_configs(config, None if tokenizer is None else tokenizer.marks.text_end)
        config["model.safetensors.index.json"] = bagel.runtime_index(parts, sizes)
    folder.mkdir(parents=True, exist_ok=True)
    if (layout != "ours" and is_ours(folder)) or (layout == "ours" and (folder / "llm_config.json").exists()):
        raise ValueError(f"{folder.name} holds a checkpoint in the other layout: choose another folder.")
    _check_room(folder, sum(sizes.values()))
    limit = max_shard_bytes or (SHARD if layout == "ours" else sum(sizes.values()))
    stale = [
        f"{stem}{rest}"
        for stem in parts
        for rest in (".safetensors", "-*-of-*.safetensors", ".safetensors.index.json")
    ]
    try:
        with into_folder(folder, last=tuple(config), stale=[*stale, NAME]) as aside:
            for stem, part in parts.items():
                _write(part, dtypes, aside, stem, limit)
            if tokenizer is not None:
                tokenizer.save(aside)
                if layout == "bagel":
                    bagel.save_slow_tokenizer(tokenizer, aside)
            for name, content in config.items():
                (aside / name).write_text(json.dumps(content, indent=2) + "\n", "utf8")
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{folder} could not be written ({error}), and is as it was: make room or choose another place."
        ) from error


def _check_room(folder: Path, size: int) -> None:
    """Raise ValueError if the disk has no room for that many bytes."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise ValueError(
            f"The weights take {size / 1e9:.1f} GB, but {folder} has room for {free / 1e9:.1f} GB: choose "
            "another place, or a smaller dtype."
        )


def our_config(network: UniMedVL, words: str | None) -> dict[str, Any]:
    """What config.json says; `words` is the digest of the tokenizer that the weights were trained with."""
    known = {} if words is None else {"tokenizer": words}
    return {"format": FORMAT, "version": VERSION, **known, "network": network.config}


def _write(
    weights: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], folder: Path, stem: str, limit: int
) -> None:
    """One file, or shards of at most `limit` bytes with an index, named as Hugging Face does.

    Weights are cast and brought to the CPU shard by shard.
    """
    sizes = {name: x.numel() * dtypes[name].itemsize for name, x in weights.items()}
    shards: list[list[str]] = [[]]
    filled, drawing, cut = 0, False, sum(sizes.values()) > limit
    for name in sorted(sizes, key=_draws) if cut else sizes:  # stable: else in the order of the network
        if shards[-1] and (filled + sizes[name] > limit or (cut and _draws(name) != drawing)):
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled, drawing = filled + sizes[name], _draws(name)
    names = [f"{stem}.safetensors"]
    if len(shards) > 1:
        names = [f"{stem}-{i:05d}-of-{len(shards):05d}.safetensors" for i in range(1, len(shards) + 1)]
        index = {
            "metadata": {"total_size": sum(sizes.values())},
            "weight_map": {key: name for name, shard in zip(names, shards, strict=True) for key in shard},
        }
        (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", "utf8")
    for name, shard in zip(names, shards, strict=True):
        content = {key: weights[key].detach().to("cpu", dtypes[key]).contiguous() for key in shard}
        save_file(content, folder / name, metadata={"format": "pt"})
        (folder / name).chmod(0o644)  # safetensors writes for the owner alone; weights are for everybody


def _draws(name: str) -> bool:
    """Whether only drawing needs a weight: these come last, so that answering reads the first files."""
    return bool(re.search(f"{GENERATION}|{AUTOENCODER}", name))
