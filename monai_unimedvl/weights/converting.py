# SPDX-License-Identifier: Apache-2.0
"""One layout of a checkpoint into another. Weights are mapped, not held, and written file by file."""

from __future__ import annotations

from pathlib import Path

import torch

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights import upstream
from monai_unimedvl.weights.checkpoint import read_checkpoint
from monai_unimedvl.weights.headers import PICKLES
from monai_unimedvl.weights.io import save
from monai_unimedvl.weights.loading import load, of_source, tokenizer_of
from monai_unimedvl.weights.source import Source, check_folder


def convert(
    source: str | Path,
    target: str | Path,
    *,
    layout: str = "ours",
    dtype: torch.dtype | None = None,
    base: str | Path | None = None,
    max_shard_bytes: int | None = None,
    progress: bool = False,
) -> Path:
    """Write the checkpoint of one folder into a new one; returns it.

    Args:
        source: folder of ours or of BAGEL / UniMedVL, or a name on the Hub. Weights in the reference's layout
            may be torch pickles (ema.pt, pytorch_model.bin ...): tensors are read, and nothing is run.
        target: a new folder, or an empty one.
        layout: "ours", "upstream" or "bagel"; see `save`.
        dtype: of the weights, see `save`.
        base: what a partial fine-tune is merged over.
        max_shard_bytes: see `save`.
        progress: show a bar.

    Raises:
        ValueError: the source cannot be loaded whole, the target is not empty, or cannot take the weights.
    """
    target = Path(target)
    if target.is_dir() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty, expected a new folder: choose another name.")
    there = target.is_dir()
    network, tokenizer = _opened(source, base, progress)
    try:
        save(network, tokenizer, target, dtype=dtype, max_shard_bytes=max_shard_bytes, layout=layout)
    except ValueError:
        if target.is_dir() and not there and not any(target.iterdir()):
            target.rmdir()
        raise
    return target


def _opened(source: str | Path, base: str | Path | None, progress: bool) -> tuple[UniMedVL, Tokenizer | None]:
    folder = Path(source)
    pickles = pickled(folder) if folder.is_dir() else []
    if not pickles or base is not None or any(folder.glob("*.safetensors")):
        return load(source, base=base, progress=progress)
    check_folder(folder)
    held = upstream.to_ours(read_checkpoint(pickles[0]))
    for file in pickles[1:]:
        held |= {
            f"autoencoder.{k}": x for k, x in upstream.autoencoder_to_ours(read_checkpoint(file)).items()
        }
    shapes = {name: tuple(x.shape) for name, x in held.items()}
    config = upstream.config_to_ours(upstream.config_files(folder), shapes)
    found = Source(folder.name, config, {}, held)
    tokenizer = tokenizer_of(folder, found)
    return of_source(found, progress=progress), tokenizer


def pickled(folder: Path) -> list[Path]:
    """The torch files of an upstream folder: its main weights, and then its autoencoder's, if there."""
    files = {file.stem: file for file in sorted(folder.iterdir()) if file.suffix.lower() in PICKLES}
    main = [files[stem] for stem in ("ema", "ema_bf16", "model", "pytorch_model") if stem in files]
    inner = [files[stem] for stem in ("ae", "vae_model") if stem in files]
    return [*main[:1], *inner[:1]] if main and (folder / "llm_config.json").is_file() else []
