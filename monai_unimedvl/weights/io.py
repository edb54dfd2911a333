# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint folder into a network, and save one. Strict: what does not fit is an error that lists it.

The network is built without memory (on torch's meta device) and the mapped weights are put in, so loading
costs one copy of the weights at most, and none where dtype and device stay as they are.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from monai_unimedvl.networks.layers import grid_table
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights import upstream
from monai_unimedvl.weights.checkpoint import NAME, read_checkpoint
from monai_unimedvl.weights.headers import Entry, find_weights, read_headers, read_json, refuse_pickle
from monai_unimedvl.weights.report import check

FORMAT = "monai_unimedvl"
VERSION = 1
AUTOENCODERS = ("ae", "vae_model")  # upstream's two names for the autoencoder's file
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt")

logger = logging.getLogger(__name__)


def load(
    folder: str | Path, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> tuple[UniMedVL, Tokenizer | None]:
    """The network in a folder, in eval mode, and its tokenizer, or None where the folder has none.

    Args:
        folder: one of ours (config.json, model*.safetensors, tokenizer.json), or one of BAGEL / UniMedVL
            (ema.safetensors or model*.safetensors, ae.safetensors, llm_config.json, vit_config.json).
        dtype: of all floating weights; None keeps what the files hold.
        device: where the weights go; None leaves them on the CPU, mapped from the files.

    Raises:
        ValueError: no such folder, a file is missing, damaged or a pickle, or the weights do not fit the
            config: then the message counts and names them by part.
    """
    folder = Path(folder)
    if folder.is_file():
        refuse_pickle(folder)
        raise ValueError(
            f"{folder.name} is a file, expected the folder that it lies in: pass {folder.parent.name}/."
        )
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: check the path.")
    config, weights = _read_ours(folder) if is_ours(folder) else _read_upstream(folder)
    tokenizer = Tokenizer.load(folder) if any((folder / name).is_file() for name in TOKENIZERS) else None
    if tokenizer is not None:
        _same_words(folder, tokenizer)
        _fit_words(config, weights, tokenizer)
    network = _build(config)
    _recompute_tables(network, weights)
    expected = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    check(expected, {name: tuple(x.shape) for name, x in weights.items()}, folder.name)
    for name, x in weights.items():  # one by one: at no time are there two copies of all
        weights[name] = x.to(device=device, dtype=dtype if x.is_floating_point() else None)
    network.load_state_dict(weights, strict=True, assign=True)
    return network.eval(), tokenizer


def is_ours(folder: Path) -> bool:
    """Whether a folder was written by `save` in our layout."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("format") == FORMAT


def save(
    network: UniMedVL,
    tokenizer: Tokenizer | None,
    folder: str | Path,
    *,
    dtype: torch.dtype | None = None,
    max_shard_bytes: int = 5_000_000_000,
    layout: str = "ours",
) -> None:
    """Write a network as a folder that `load` reads. Whole or not at all: files are made aside, then moved.

    Args:
        tokenizer: None leaves a tokenizer that is in the folder as it is.
        dtype: of the weights in the files, for example torch.bfloat16; buffers of the autoencoder (the patch
            codec's basis) keep theirs. None keeps all.
        max_shard_bytes: weights beyond that go to a further file; a single tensor is never cut.
        layout: "ours" (config.json, model*.safetensors), or "upstream" (ema.safetensors, ae.safetensors and
            the config files that BAGEL and UniMedVL read).

    Raises:
        ValueError: unknown layout, not a floating dtype, a folder that is a file or holds the other layout,
            or a network that the reference has no place for.
    """
    folder = Path(folder)
    if folder.is_file():
        raise ValueError(f"{folder} is a file, expected a folder: choose another name.")
    if layout not in ("ours", "upstream"):
        raise ValueError(f"save got layout={layout!r}, expected 'ours' or 'upstream'.")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(
            f"save got dtype={dtype}, expected a floating one: use torch.bfloat16 or torch.float16."
        )
    weights = network.state_dict()
    if any(x.is_meta for x in weights.values()):
        raise ValueError("The network has no content (meta device): load or initialise it before saving.")
    kept = {f"autoencoder.{name}" for name, _ in network.autoencoder.named_buffers()}
    config: dict[str, dict[str, Any]]
    if layout == "ours":
        words = _words(folder) if tokenizer is None else tokenizer.digest()
        config = {"config.json": our_config(network, words)}
        parts = {"model": weights}
    else:
        config = upstream.config_to_upstream(network.config)
        inner = {
            k.removeprefix("autoencoder."): x for k, x in weights.items() if k.startswith("autoencoder.")
        }
        parts = {"ema": upstream.to_upstream(weights), "ae": upstream.autoencoder_to_upstream(inner)}
    folder.mkdir(parents=True, exist_ok=True)
    if (layout == "upstream" and is_ours(folder)) or (
        layout == "ours" and (folder / "llm_config.json").exists()
    ):
        raise ValueError(f"{folder.name} holds a checkpoint in the other layout: choose another folder.")
    aside = Path(tempfile.mkdtemp(prefix=".saving-", dir=folder))
    try:
        for stem, part in parts.items():
            dtypes = {
                name: dtype if dtype is not None and x.is_floating_point() and name not in kept else x.dtype
                for name, x in part.items()
            }
            _write(part, dtypes, aside, stem, max_shard_bytes)
        if tokenizer is not None:
            tokenizer.save(aside)
        for name, content in config.items():
            (aside / name).write_text(json.dumps(content, indent=2) + "\n", "utf8")
        _move(aside, folder, last=tuple(config), stems=tuple(parts))
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def our_config(network: UniMedVL, words: str | None) -> dict[str, Any]:
    """What config.json says; `words` is the digest of the tokenizer that the weights were trained with."""
    known = {} if words is None else {"tokenizer": words}
    return {"format": FORMAT, "version": VERSION, **known, "network": network.config}


def _words(folder: Path) -> str | None:
    """The tokenizer's digest that a folder of ours names."""
    return read_json(folder / "config.json").get("tokenizer") if is_ours(folder) else None


def _same_words(folder: Path, tokenizer: Tokenizer) -> None:
    trained = _words(folder)
    if trained is not None and trained != (here := tokenizer.digest()):
        raise ValueError(
            f"{folder.name} holds tokenizer {here[:12]}, but its weights were trained with {trained[:12]}: "
            "put back the tokenizer files that came with the weights."
        )


def _read_ours(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    content = read_json(folder / "config.json")
    if content.get("version") != VERSION or not isinstance(content.get("network"), dict):
        raise ValueError(
            f"{folder.name}/config.json has version {content.get('version')!r}, expected {VERSION} and a "
            "network: update monai_unimedvl, or save the checkpoint again."
        )
    if (folder / NAME).is_file():
        return content["network"], read_checkpoint(folder / NAME)
    return content["network"], _tensors(read_headers(find_weights(folder, ("model",))))


def _read_upstream(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    files = upstream.config_files(folder)
    if not files:
        for file in sorted(folder.iterdir()):
            refuse_pickle(file)
        raise ValueError(
            f"{folder.name} holds no model, expected config.json, or llm_config.json and vit_config.json: "
            "point to the folder that has them."
        )
    entries = read_headers(find_weights(folder))
    config = upstream.config_to_ours(files, upstream.main_shapes(entries))
    weights = upstream.to_ours(_tensors(entries))
    stem = next((stem for stem in AUTOENCODERS if (folder / f"{stem}.safetensors").is_file()), None)
    if stem is not None and not any(name.startswith("autoencoder.") for name in weights):
        inner = upstream.autoencoder_to_ours(_tensors(read_headers([folder / f"{stem}.safetensors"])))
        weights |= {f"autoencoder.{name}": x for name, x in inner.items()}
    return config, weights


def _tensors(entries: Mapping[str, Entry]) -> dict[str, Tensor]:
    """The tensors, mapped from their files."""
    weights = {}
    for file in dict.fromkeys(entry.file for entry in entries.values()):
        with safe_open(file, framework="pt") as content:
            for name in content.keys():  # noqa: SIM118 (no mapping)
                weights[name] = content.get_tensor(name)
    return weights


def _build(config: dict[str, Any]) -> UniMedVL:
    """The network without memory."""
    try:
        with torch.device("meta"):
            return from_config(config)
    except (TypeError, KeyError) as error:
        raise ValueError(f"The network's config cannot be built ({error}): mend config.json.") from error


def _fit_words(config: dict[str, Any], weights: dict[str, Tensor], tokenizer: Tokenizer) -> None:
    """Grow embedding and head for marks that the tokenizer lacked; the new rows are the mean of the old."""
    rows = config["decoder"]["vocab_size"]
    if len(tokenizer) <= rows:
        return
    if len(tokenizer) - len(tokenizer.added) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} ids, the embedding {rows} rows: take both from one model."
        )
    logger.warning("The tokenizer lacked %s: the embedding grew by rows that are untrained.", tokenizer.added)
    config["decoder"] = {**config["decoder"], "vocab_size": len(tokenizer)}
    for name in ("decoder.embed.weight", "decoder.head.weight"):
        if name in weights:
            x = weights[name]
            mean = x.float().mean(0, keepdim=True).to(x.dtype).expand(len(tokenizer) - rows, -1)
            weights[name] = torch.cat([x, mean])


def _recompute_tables(network: UniMedVL, weights: dict[str, Tensor]) -> None:
    """Put in position tables that the files lack, and give all the dtype of the embedding."""
    hidden_size = network.decoder.embed.embedding_dim
    sides = {"latent_table": network.latent_side}
    if network.vision is not None:
        sides["view_table"] = network.vision.grid_side
    for name, side in sides.items():
        if name not in weights:
            weights[name] = grid_table(side, hidden_size, network.table_base, network.table_scale)
        if "decoder.embed.weight" in weights:
            weights[name] = weights[name].to(weights["decoder.embed.weight"].dtype)


def _write(
    weights: Mapping[str, Tensor], dtypes: Mapping[str, torch.dtype], folder: Path, stem: str, limit: int
) -> None:
    """One file, or shards of at most `limit` bytes with an index, named as Hugging Face does.

    Weights are cast and brought to the CPU shard by shard.
    """
    sizes = {name: x.numel() * dtypes[name].itemsize for name, x in weights.items()}
    shards: list[list[str]] = [[]]
    filled = 0
    for name, size in sizes.items():
        if shards[-1] and filled + size > limit:
            shards.append([])
            filled = 0
        shards[-1].append(name)
        filled += size
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


def _move(aside: Path, folder: Path, *, last: tuple[str, ...], stems: tuple[str, ...]) -> None:
    """Move all files in. The config goes first and comes last: a folder caught halfway is no model."""
    for name in last:
        (folder / name).unlink(missing_ok=True)
    new = sorted(file.name for file in aside.iterdir())
    for stem in stems:  # weights of an earlier save under other names
        for pattern in (
            f"{stem}.safetensors",
            f"{stem}-*-of-*.safetensors",
            f"{stem}.safetensors.index.json",
        ):
            for old in folder.glob(pattern):
                if old.name not in new:
                    old.unlink()
    (folder / NAME).unlink(missing_ok=True)  # it would be read in place of the new weights
    for name in [*(name for name in new if name not in last), *last]:
        os.replace(aside / name, folder / name)
