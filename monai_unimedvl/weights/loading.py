# SPDX-License-Identifier: Apache-2.0
"""Load a checkpoint folder into a network. Strict: what does not fit is an error that lists it.

The network is built without memory (on torch's meta device) and filled weight by weight. What stays as it is
in the file is mapped, not copied; what is cast, moved or quantised is so one weight at a time, so there are
never two copies of the network.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from monai_unimedvl.networks.absent import PARTS, build_parts
from monai_unimedvl.networks.layers import grid_table
from monai_unimedvl.networks.quantised import check_kind, quantised
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights.headers import read_json
from monai_unimedvl.weights.hub import located
from monai_unimedvl.weights.offload import Offload
from monai_unimedvl.weights.report import check
from monai_unimedvl.weights.source import Source, is_ours, open_source

ANSWERING = ("understanding", "vision")  # what questions about images need
DRAWING = PARTS
TOKENIZERS = ("tokenizer.json", "vocab.json", "merges.txt")
TABLES = ("view_table", "latent_table")
_OF = {  # weights that go with a part, but for the understanding expert, which is always there
    "generation": r"decoder\..*\.generation\.|(latent_in|latent_out|latent_gate|time_embed)\."
    r"|(tones|details|strokes)\.|latent_(table|variance)$",
    "vision": r"vision\.|connector\.|view_table$",
    "autoencoder": r"autoencoder\.",
}

logger = logging.getLogger(__name__)


def load(
    folder: str | Path,
    *,
    parts: Iterable[str] = PARTS,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    base: str | Path | None = None,
    progress: bool = False,
) -> tuple[UniMedVL, Tokenizer | None]:
    """The network in a folder, in eval mode, and its tokenizer, or None where the folder has none.

    Args:
        folder: one of ours (config.json, model*.safetensors, tokenizer.json), one of BAGEL / UniMedVL
            (ema.safetensors or model*.safetensors, ae.safetensors, llm_config.json, vit_config.json), or
            the name of such a repository on the Hugging Face Hub, OWNER/NAME or OWNER/NAME@REVISION.
        parts: what is loaded, of "understanding" (always needed), "generation", "vision" and "autoencoder";
            `ANSWERING` is enough for answers. Nothing else is read.
        dtype: of all floating weights; None keeps what the files hold.
        device: where the weights go; None leaves them on the CPU, mapped from the files.
        quantize: "int8", "nf4" or "int4" holds the linear layers of the decoder so; None as they are.
        device_map: "auto", or module -> device, "cpu" or "disk", for accelerate; weights on "disk" are read
            from their files whenever they are needed. Names at most one accelerator.
        base: the folder that this one is a part of: a partial fine-tune is merged over it.
        progress: show a bar.

    Raises:
        ValueError: no such folder, a file is missing, damaged, a pickle or a link to elsewhere, parts or a
            setting that do not go together, or weights that do not fit the config: then the message counts
            and names them by part.
    """
    parts = check_parts(parts)
    check_kind(quantize)
    folder = located(folder, parts)
    below = None if base is None else open_source(located(base, parts), parts=parts)
    source = open_source(folder, below, parts)
    tokenizer = tokenizer_of(folder, source)
    if tokenizer is None and base is not None:
        tokenizer = tokenizer_of(located(base, parts), source)
    network = of_source(
        source, parts=parts, dtype=dtype, device=device, quantize=quantize, device_map=device_map,
        progress=progress,
    )  # fmt: skip
    return network, tokenizer


def of_source(
    source: Source,
    *,
    parts: tuple[str, ...] = PARTS,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    quantize: str | None = None,
    device_map: str | Mapping[str, Any] | None = None,
    progress: bool = False,
) -> UniMedVL:
    """The network that a source holds, in eval mode; arguments and errors are those of `load`."""
    network = fitted(source, parts, dtype)
    offload = None
    if device_map is not None:
        if quantize is not None or device is not None:
            raise ValueError(
                "load got device_map beside quantize or device, but it decides where weights go and needs "
                "them whole: give one of them."
            )
        offload = Offload(network, device_map, dtype)
    names = _shown(list(network.state_dict()), progress, source.name)
    _fill(network, source, names, dtype, device, quantize, offload)
    network.eval()
    return network if offload is None else offload.dispatch(source)


def fitted(source: Source, parts: tuple[str, ...], dtype: torch.dtype | None = None) -> UniMedVL:
    """The network without memory, once it is sure that the source has what it needs.

    Raises:
        ValueError: a config that cannot be built, or weights that do not fit it.
    """
    try:
        with torch.device("meta"):
            network = build_parts(source.config, parts)
    except (TypeError, KeyError) as error:
        raise ValueError(f"The network's config cannot be built ({error}): mend config.json.") from error
    _recompute_tables(network, source)
    expected = {name: tuple(x.shape) for name, x in network.state_dict().items()}
    found = {name: source.shape(name) for name in source.names if not left_out(name, parts)}
    check(expected, found, source.name)
    _check_types(source, expected, dtype, source.name)
    return network


def check_parts(parts: Iterable[str]) -> tuple[str, ...]:
    """The parts in the order of `PARTS`.

    Raises:
        ValueError: an unknown one, or none that understands.
    """
    asked = (parts,) if isinstance(parts, str) else tuple(parts)
    odd = [part for part in asked if part not in PARTS]
    if odd or "understanding" not in asked:
        raise ValueError(
            f"load got parts={asked}, expected some of {', '.join(PARTS)}, with 'understanding', which reads "
            "the words of every job: correct them."
        )
    return tuple(part for part in PARTS if part in asked)


def linears(network: UniMedVL) -> set[str]:
    """Names of the linear layers that `quantize` changes: those of the decoder, its head with them."""
    return {f"decoder.{name}" for name, x in network.decoder.named_modules() if isinstance(x, nn.Linear)}


def left_out(name: str, parts: tuple[str, ...]) -> bool:
    """Whether a weight belongs to a part that is not among `parts`."""
    return any(part not in parts and re.match(pattern, name) for part, pattern in _OF.items())


def _fill(
    network: UniMedVL, source: Source, names: Iterator[str], dtype: torch.dtype | None,
    device: torch.device | str | None, quantize: str | None, offload: Offload | None,
) -> None:  # fmt: skip
    """Put the weights in, one by one."""
    narrow = linears(network) if quantize else set()
    words = source.dtype("decoder.embed.weight")
    for name in names:
        module, _, leaf = name.rpartition(".")
        if module in narrow and leaf == "bias":
            continue  # with its weight
        where = device if offload is None else offload.device(name)
        if where == "disk":
            continue
        x = source.read(name)
        if name in TABLES:
            x = x.to(words)
        whole = _typed(name, x, dtype)
        if module in narrow:
            bias = f"{module}.bias"
            b = source.read(bias).to(device) if bias in source else None
            built = quantised(x.to(device), b, str(quantize), whole)
            parent, _, child = module.rpartition(".")
            setattr(network.get_submodule(parent), child, built)
        else:
            _put(network.get_submodule(module), leaf, x.to(device=where, dtype=whole))


def _put(module: nn.Module, leaf: str, x: Tensor) -> None:
    old = module._parameters.get(leaf)
    if old is not None:
        module._parameters[leaf] = nn.Parameter(x, requires_grad=old.requires_grad)
    else:
        module._buffers[leaf] = x


def _typed(name: str, x: Tensor, dtype: torch.dtype | None) -> torch.dtype:
    return dtype if dtype is not None and x.is_floating_point() else x.dtype


def _check_types(source: Source, names: Iterable[str], dtype: torch.dtype | None, folder: str) -> None:
    """Raise ValueError for weights that are no numbers a network computes with."""
    held = {source.dtype(name): name for name in names}
    for odd, name in sorted(held.items(), key=lambda item: item[0].is_floating_point):
        if not odd.is_floating_point:
            raise ValueError(
                f"{name} of {folder} holds {odd}, expected floating numbers: another program quantised these "
                "weights; take the original ones, and quantize=."
            )
        if odd.itemsize == 1 and dtype is None:
            raise ValueError(
                f"{name} of {folder} holds {odd}, in which nothing computes: load it with "
                "dtype=torch.bfloat16."
            )


def tokenizer_of(folder: Path, source: Source) -> Tokenizer | None:
    """Of a folder; checked against the weights, which grow by the marks that it had to add."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        return None
    tokenizer = Tokenizer.load(folder)
    trained = words_of(folder)
    if trained is not None and trained != (here := tokenizer.digest()):
        raise ValueError(
            f"{folder.name} holds tokenizer {here[:12]}, but its weights were trained with {trained[:12]}: "
            "put back the tokenizer files that came with the weights."
        )
    _fit_words(source, tokenizer)
    return tokenizer


def words_of(folder: Path) -> str | None:
    """The tokenizer's digest that a folder of ours names."""
    return read_json(folder / "config.json").get("tokenizer") if is_ours(folder) else None


def _fit_words(source: Source, tokenizer: Tokenizer) -> None:
    """Grow embedding and head for marks that the tokenizer lacked; the new rows are the mean of the old."""
    rows = source.config["decoder"]["vocab_size"]
    if len(tokenizer) <= rows:
        return
    if len(tokenizer) - len(tokenizer.added) > rows:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} ids, the embedding {rows} rows: take both from one model."
        )
    logger.warning("The tokenizer lacked %s: the embedding grew by rows that are untrained.", tokenizer.added)
    source.config = {**source.config, "decoder": {**source.config["decoder"], "vocab_size": len(tokenizer)}}
    for name in ("decoder.embed.weight", "decoder.head.weight"):
        if name in source:
            x = source.read(name)
            mean = x.float().mean(0, keepdim=True).to(x.dtype).expand(len(tokenizer) - rows, -1)
            source.held[name] = torch.cat([x, mean])


def _recompute_tables(network: UniMedVL, source: Source) -> None:
    """Put in position tables that the files lack."""
    hidden_size = network.decoder.embed.embedding_dim
    sides = {"latent_table": network.latent_side}
    if network.vision is not None:
        sides["view_table"] = network.vision.grid_side
    for name, side in sides.items():
        if name not in source and getattr(network, name) is not None:
            source.held[name] = grid_table(side, hidden_size, network.table_base, network.table_scale)


def _shown(names: list[str], progress: bool, title: str) -> Iterator[str]:
    if not progress:
        return iter(names)
    from tqdm import tqdm

    return iter(tqdm(names, desc=title, unit=" weights", leave=False))
