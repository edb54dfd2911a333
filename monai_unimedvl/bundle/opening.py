# SPDX-License-Identifier: Apache-2.0
"""From a bundle to a network: `load("unimedvl_nano")` -> network and tokenizer; the hash of its weights."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from monai_unimedvl import weights
from monai_unimedvl.bundle.places import DEFAULT, models
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights.checkpoint import NAME, read_checkpoint
from monai_unimedvl.weights.hub import is_name, located
from monai_unimedvl.weights.loading import check_parts

CONFIGS = ("config.json", "llm_config.json")  # ours; the released one
SMALL = 1_000_000_000  # bytes of weights; below that they are computed in float32 however they are kept


def load(
    path: str | Path = DEFAULT,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    parts: Iterable[str] = weights.DRAWING,
    quantize: str | None = None,
    progress: bool = False,
) -> tuple[UniMedVL, Tokenizer]:
    """The network, in eval mode, and the tokenizer of a bundle.

    Args:
        path: a name of `available()`, a bundle's folder, a folder of weights, or OWNER/NAME on the Hub.
        dtype: of the weights; None takes float32 for weights below 1 GB, and else what the files hold.
        device: None is the CPU.
        parts: what is loaded; `weights.ANSWERING` is enough for answers, and half the memory.
        quantize: "int8", "nf4" or "int4" for the decoder's linear layers; see `weights.load`.
        progress: show a bar.

    Raises:
        ValueError: no such folder, no weights or no tokenizer in it, or weights that do not fit their config.
    """
    folder = located(path, check_parts(parts)) if is_name(path) else models(path)
    if (folder / NAME).is_file() and not any((folder / name).is_file() for name in CONFIGS):
        read_checkpoint(folder / NAME)  # a placeholder says where its weights are
    if dtype is None and sum(file.stat().st_size for file in _files(folder)) < SMALL:
        dtype = torch.float32
    network, tokenizer = weights.load(
        folder, dtype=dtype, device=device, parts=parts, quantize=quantize, progress=progress
    )
    if tokenizer is None:
        raise ValueError(
            f"{folder.name} has weights but no tokenizer.json: copy the tokenizer's files there."
        )
    return network, tokenizer


def digest(path: str | Path = DEFAULT) -> str:
    """sha256 of the weights: of names, types, shapes and bytes of all tensors, whatever file holds them."""
    each: dict[str, str] = {}
    for file in _files(models(path)):
        stat = file.stat()
        each |= _hashes(str(file), stat.st_size, stat.st_mtime_ns)
    return hashlib.sha256("\n".join(each[name] for name in sorted(each)).encode()).hexdigest()


def _files(folder: Path) -> list[Path]:
    """model.pt, which training writes, before the safetensors files; without config.json it is no model."""
    checkpoint = folder / NAME
    ours = checkpoint.is_file() and (folder / CONFIGS[0]).is_file()
    return [checkpoint] if ours else sorted(folder.glob("*.safetensors"))


@lru_cache(maxsize=256)
def _hashes(file: str, size: int, changed: int) -> dict[str, str]:
    """name -> hash of each tensor of a file."""
    return {name: _hash(name, x) for name, x in _tensors(Path(file))}


def _hash(name: str, x: Tensor) -> str:
    made = hashlib.sha256(f"{name} {x.dtype} {list(x.shape)} ".encode())
    if x.numel():
        made.update(x.detach().contiguous().flatten().view(torch.uint8).numpy())
    return made.hexdigest()


def _tensors(file: Path) -> Iterator[tuple[str, Tensor]]:
    if file.suffix == ".pt":
        yield from read_checkpoint(file).items()
        return
    with safe_open(file, framework="pt") as content:
        for name in content.keys():  # noqa: SIM118 (no mapping)
            yield name, content.get_tensor(name)
