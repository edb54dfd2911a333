# SPDX-License-Identifier: Apache-2.0
"""What lies in a folder of weights, from names and safetensors headers alone: no weight is read.

A safetensors file is eight bytes (the header's length, little endian), a JSON header, then the bytes of the
tensors; so its whole content can be listed, and a cut-off download found, in no time.
"""

from __future__ import annotations

import json
import math
import mmap
import re
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
MAIN = ("ema", "ema_bf16", "model")  # the order in which upstream's scripts look
# Names, in either layout, of what only drawing needs, and of the autoencoder.
GENERATION = (
    r"_moe_gen|\.generation\.|(^|\.)(vae2llm|llm2vae|time_embedder|latent_pos_embed)\.|"
    r"^(latent_|time_embed\.|tones\.|details\.|strokes\.)"
)
AUTOENCODER = r"^autoencoder\.|(^|\.)vae_model\."
HEADER_LIMIT = 100_000_000  # bytes, as in the safetensors library
_DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn, "F8_E5M2": torch.float8_e5m2, "BOOL": torch.bool, "U8": torch.uint8,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
}  # fmt: skip


class Entry(NamedTuple):
    """One tensor of a file, whose bytes begin at `start`."""

    file: Path
    shape: tuple[int, ...]
    dtype: torch.dtype
    start: int

    @property
    def nbytes(self) -> int:
        """Of its content."""
        return math.prod(self.shape) * self.dtype.itemsize

    def read(self) -> Tensor:
        """The tensor, mapped from the file: no copy, and writing to it does not change the file.

        Each has a mapping of its own, which goes with it. One of the whole file would be refused where the
        file is larger than the memory, and would hold all of it that was ever looked at.

        Raises:
            ValueError: the file cannot be read, or has become shorter.
        """
        if not self.nbytes:
            return torch.empty(self.shape, dtype=self.dtype)
        before = self.start % mmap.ALLOCATIONGRANULARITY
        try:
            with open(self.file, "rb") as stream:
                content = mmap.mmap(
                    stream.fileno(), before + self.nbytes, access=mmap.ACCESS_COPY, offset=self.start - before
                )
        except (OSError, ValueError) as error:  # ValueError: beyond the end
            raise ValueError(f"{self.file.name} cannot be read ({error}): fetch it again.") from error
        count = math.prod(self.shape)
        return torch.frombuffer(content, dtype=self.dtype, count=count, offset=before).view(self.shape)

    def meta(self) -> Tensor:
        """The tensor without its content."""
        return torch.empty(self.shape, dtype=self.dtype, device="meta")


def read_header(file: Path) -> dict[str, Entry]:
    """Name -> entry of every tensor in a safetensors file.

    Raises:
        ValueError: the file is no file, a pickle, a Git LFS pointer, cut off, or no safetensors at all.
    """
    refuse_pickle(file)
    if file.exists() and not file.is_file():  # reading a pipe would wait for ever
        raise ValueError(
            f"{file.name} is a folder, a pipe or a device, expected a file: put the weights there."
        )
    with open(file, "rb") as stream:
        start = stream.read(8)
        if start == b"version ":
            raise ValueError(
                f"{file.name} is a Git LFS pointer, not the weights: fetch them with `git lfs pull`."
            )
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
        if not 2 <= length <= HEADER_LIMIT:
            raise ValueError(
                f"{file.name} does not start like a safetensors file: fetch or convert it again."
            )
        text = stream.read(length)
    size = file.stat().st_size
    if len(text) < length:
        raise ValueError(f"{file.name} is cut off inside its header ({size} bytes): fetch it again.")
    try:
        header = json.loads(text)
        tensors = {name: entry for name, entry in header.items() if name != "__metadata__"}
        spans = {name: tuple(map(int, entry["data_offsets"])) for name, entry in tensors.items()}
        entries = {
            name: Entry(file, tuple(map(int, x["shape"])), _DTYPES[x["dtype"]], 8 + length + spans[name][0])
            for name, x in tensors.items()
        }
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise ValueError(
            f"{file.name} has no readable safetensors header: fetch or convert it again."
        ) from error
    end = 8 + length + max((stop for _, stop in spans.values()), default=0)
    if size != end:
        raise ValueError(
            f"{file.name} is cut off or damaged: {size} bytes, its header promises {end}; fetch it again."
        )
    _check_spans(file, entries, spans)
    return entries


def _check_spans(file: Path, entries: Mapping[str, Entry], spans: Mapping[str, tuple[int, ...]]) -> None:
    """Tensors lie side by side, each as long as its shape says: another header has been tampered with."""
    at = 0
    for name, (start, stop) in sorted(spans.items(), key=lambda item: item[1]):
        if start != at or stop - start != entries[name].nbytes or min(entries[name].shape, default=0) < 0:
            raise ValueError(
                f"{file.name} is damaged: its header gives {name} bytes {start} to {stop}, expected "
                f"{entries[name].nbytes} from {at}; fetch it again."
            )
        at = stop


def refuse_pickle(file: Path) -> None:
    """Raise ValueError if the name is that of a pickle: reading one can run any code."""
    if file.suffix.lower() in PICKLES:
        raise ValueError(
            f"{file.name} is a pickle, which can run code when it is read: convert it to safetensors with "
            "safetensors.torch.save_file on a machine you can afford to lose, then load that."
        )


def read_headers(files: Sequence[Path]) -> dict[str, Entry]:
    """The headers of several files as one.

    Raises:
        ValueError: as `read_header`, or two files hold the same name.
    """
    entries: dict[str, Entry] = {}
    for file in files:
        for name, entry in read_header(file).items():
            if name in entries:
                raise ValueError(
                    f"{name} is in {entries[name].file.name} and in {file.name}: remove the file too many."
                )
            entries[name] = entry
    return entries


def spare_shards(weight_map: Mapping[str, str], parts: Sequence[str]) -> set[str]:
    """The files of an index that hold nothing of `parts`."""
    out = [
        name for name, part in ((GENERATION, "generation"), (AUTOENCODER, "autoencoder")) if part not in parts
    ]
    if not out:
        return set()
    needed = {file for weight, file in weight_map.items() if not re.search("|".join(out), weight)}
    return set(weight_map.values()) - needed


def find_weights(
    folder: Path, stems: Sequence[str] = MAIN, parts: Sequence[str] = ("generation", "autoencoder")
) -> list[Path]:
    """The files that hold the first of `stems` there is: one file, or all shards of it.

    Args:
        parts: shards that hold nothing of them may be missing.

    Raises:
        ValueError: none is there (a pickle in its place is named), or a shard is missing.
    """
    for stem in stems:
        if (folder / f"{stem}.safetensors").is_file():
            return [folder / f"{stem}.safetensors"]
        index = folder / f"{stem}.safetensors.index.json"
        shards = sorted(folder.glob(f"{stem}-[0-9]*-of-[0-9]*.safetensors"))
        if index.is_file():
            weight_map = read_json(index).get("weight_map", {})
            wanted = sorted(set(weight_map.values()) - spare_shards(weight_map, parts))
            # a name with a folder in it would lead out of this one
            if not wanted or any(Path(name).name != name for name in wanted):
                raise ValueError(f"{index.name} has no usable weight_map: fetch it again.")
        elif shards:
            count = int(shards[0].stem.rsplit("-", 1)[1])
            wanted = [f"{stem}-{i:05d}-of-{count:05d}.safetensors" for i in range(1, count + 1)]
        else:
            continue
        gone = [name for name in wanted if not (folder / name).is_file()]
        if gone:
            raise ValueError(
                f"{folder.name} lacks {len(gone)} of {len(wanted)} shards, first {gone[0]}: fetch them again."
            )
        return [folder / name for name in wanted]
    for file in sorted(folder.iterdir()):
        refuse_pickle(file)
    raise ValueError(
        f"{folder.name} holds no weights, expected {' or '.join(f'{stem}.safetensors' for stem in stems)}, "
        "whole or in shards: point to the folder that has them."
    )


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: it is missing, or no JSON object.
    """
    try:
        content = json.loads(file.read_text("utf8"))
    except FileNotFoundError as error:
        raise ValueError(f"{file.parent.name} has no {file.name}: copy it there.") from error
    except ValueError as error:  # JSON and unicode errors
        raise ValueError(f"{file.name} is no valid JSON ({error}): fetch or mend it.") from error
    if not isinstance(content, dict):
        raise ValueError(
            f"{file.name} holds a {type(content).__name__}, expected a JSON object: fetch or mend it."
        )
    return content
