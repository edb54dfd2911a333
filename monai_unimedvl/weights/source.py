# SPDX-License-Identifier: Apache-2.0
"""A folder of weights as `Source`: every weight by our name, its place in the files, read one at a time.

Nothing is read but headers until a weight is asked for; then it is mapped from its file, not copied.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.networks.absent import PARTS
from monai_unimedvl.weights import upstream
from monai_unimedvl.weights.checkpoint import NAME, read_checkpoint
from monai_unimedvl.weights.headers import Entry, find_weights, read_headers, read_json, refuse_pickle

FORMAT = "monai_unimedvl"
VERSION = 1
AUTOENCODERS = ("ae", "vae_model")  # upstream's two names for the autoencoder's file
READ = (".safetensors", ".json", ".txt", ".pt")  # endings of the files that are opened


@dataclass(frozen=True)
class Place:
    """Where a weight lies: the tensor `name` of a file, and its shape under our name."""

    entry: Entry
    name: str
    shape: tuple[int, ...]


@dataclass
class Source:
    """Weights by our names.

    Args:
        name: of the folder, for messages.
        config: of the network, as `from_config` takes it.
        places: of the weights that lie in safetensors files.
        held: weights that are in memory, or mapped from `model.pt`; they come before `places`.
    """

    name: str
    config: dict[str, Any]
    places: dict[str, Place]
    held: dict[str, Tensor] = field(default_factory=dict)

    def __contains__(self, name: str) -> bool:
        return name in self.places or name in self.held

    @property
    def names(self) -> list[str]:
        """All weights."""
        return [*self.places, *(name for name in self.held if name not in self.places)]

    def shape(self, name: str) -> tuple[int, ...]:
        """Of a weight."""
        return tuple(self.held[name].shape) if name in self.held else self.places[name].shape

    def dtype(self, name: str) -> torch.dtype:
        """Of a weight, in the file."""
        return self.held[name].dtype if name in self.held else self.places[name].entry.dtype

    def read(self, name: str) -> Tensor:
        """A weight, mapped from its file.

        Raises:
            ValueError: the file cannot be read any more.
        """
        if name in self.held:
            return self.held[name]
        place = self.places[name]
        x = place.entry.read()
        if name == "vision.patch.weight":
            x = upstream.linear_patch(x)
        return x if tuple(x.shape) == place.shape else x.reshape(place.shape)

    def over(self, base: Source) -> Source:
        """This one, where it has a weight, and else `base`: a partial fine-tune over what it started from.

        Raises:
            ValueError: nothing in common, or other shapes.
        """
        odd = [x for x in self.names if x in base and self.shape(x) != base.shape(x)]
        strange = [x for x in self.names if x not in base]
        if odd or strange or not self.names:
            first = (odd or strange or ["no weight at all"])[0]
            came = f"{first} {self.shape(first)} for {base.shape(first)}" if odd else first
            raise ValueError(
                f"{self.name} is no part of {base.name}: {len(odd)} weights of another shape, {len(strange)} "
                f"that the base lacks, first {came}; give the base that it was trained from."
            )
        return Source(
            self.name, base.config, {**base.places, **self.places},
            {**{x: y for x, y in base.held.items() if x not in self.places}, **self.held},
        )  # fmt: skip


def open_source(folder: Path, base: Source | None = None, parts: tuple[str, ...] = PARTS) -> Source:
    """The weights of a folder, ours or upstream's; nothing of them is read yet.

    Args:
        base: what the folder is a part of; its config is then taken, and the folder needs none.
        parts: of sharded weights, those files that hold nothing of these may be missing.

    Raises:
        ValueError: no such folder, a file is missing, damaged, a pickle or a link to elsewhere.
    """
    check_folder(folder)
    if is_ours(folder):
        return _ours(folder, base, parts)
    files = upstream.config_files(folder)
    if not files and base is None:
        for file in sorted(folder.iterdir()):
            refuse_pickle(file)
        raise ValueError(
            f"{folder.name} holds no model, expected config.json, or llm_config.json and vit_config.json: "
            "point to the folder that has them."
        )
    return _theirs(folder, files, base, parts)


def check_folder(folder: Path) -> None:
    """Raise ValueError unless `folder` is a folder whose files are its own.

    A link to another place could be changed, or read what nobody meant to give; the Hub's cache, whose
    snapshots are links into the folder above them, is let through.
    """
    if folder.is_file():
        refuse_pickle(folder)
        raise ValueError(
            f"{folder.name} is a file, expected a folder: pass {folder.parent}, if the model lies there."
        )
    if not folder.is_dir():
        raise ValueError(f"There is no folder {folder}: check the path.")
    home = folder.resolve()
    if home.parent.name == "snapshots":
        home = home.parent.parent
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in READ and file.is_symlink():
            if not file.exists():
                raise ValueError(f"{file.name} is a link to nothing: fetch the file again.")
            if not file.resolve().is_relative_to(home):
                raise ValueError(
                    f"{file.name} is a link out of {folder.name}, expected a file in it: copy the file there."
                )


def is_ours(folder: Path) -> bool:
    """Whether a folder was written by `save` in our layout."""
    config = folder / "config.json"
    return config.is_file() and read_json(config).get("format") == FORMAT


def _ours(folder: Path, base: Source | None, parts: tuple[str, ...]) -> Source:
    content = read_json(folder / "config.json")
    if content.get("version") != VERSION or not isinstance(content.get("network"), dict):
        raise ValueError(
            f"{folder.name}/config.json has version {content.get('version')!r}, expected {VERSION} and a "
            "network: update monai_unimedvl, or save the checkpoint again."
        )
    if (folder / NAME).is_file():
        return _over(Source(folder.name, content["network"], {}, read_checkpoint(folder / NAME)), base)
    entries = read_headers(find_weights(folder, ("model",), parts))
    places = {name: Place(entry, name, entry.shape) for name, entry in entries.items()}
    return _over(Source(folder.name, content["network"], places), base)


def _theirs(
    folder: Path, files: Mapping[str, Mapping[str, Any]], base: Source | None, parts: tuple[str, ...]
) -> Source:
    entries = read_headers(find_weights(folder, parts=parts))
    places = _named(entries)
    stem = next((stem for stem in AUTOENCODERS if (folder / f"{stem}.safetensors").is_file()), None)
    if stem is not None and not any(name.startswith("autoencoder.") for name in places):
        inside = read_headers([folder / f"{stem}.safetensors"])
        places |= _inside(inside, inside)
    if base is not None:
        return Source(folder.name, base.config, places).over(base)
    shapes = {name: place.shape for name, place in places.items()}
    return Source(folder.name, upstream.config_to_ours(files, shapes), places)


def _over(source: Source, base: Source | None) -> Source:
    return source if base is None else source.over(base)


def _named(entries: Mapping[str, Entry]) -> dict[str, Place]:
    """Places by our names; the order of `to_ours` is that of what it is given."""
    inner = [name for name in entries if "vae_model." in name]
    main = [name for name in entries if name not in inner]
    ours = upstream.to_ours({name: entries[name].meta() for name in main})
    return _zipped(ours, main, entries) | _inside(entries, inner)


def _inside(entries: Mapping[str, Entry], names: Iterable[str]) -> dict[str, Place]:
    names = list(names)
    inside = upstream.autoencoder_to_ours({name: entries[name].meta() for name in names})
    return _zipped({f"autoencoder.{name}": x for name, x in inside.items()}, names, entries)


def _zipped(ours: Mapping[str, Tensor], theirs: list[str], entries: Mapping[str, Entry]) -> dict[str, Place]:
    if len(ours) < len(theirs):
        raise ValueError("Two weights have the same name in our layout: keep one copy of each.")
    return {
        mine: Place(entries[name], name, tuple(x.shape))
        for (mine, x), name in zip(ours.items(), theirs, strict=True)
    }
