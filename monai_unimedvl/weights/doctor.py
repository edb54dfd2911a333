# SPDX-License-Identifier: Apache-2.0
"""What is this folder or file of weights, will it load, and what mends it: from headers, nothing is loaded.

Every finding says what is wrong and the flag or command that mends it. `examine` never raises for what it
finds; it finds as much as it can.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from monai_unimedvl.networks.absent import PARTS
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights import upstream
from monai_unimedvl.weights.checkpoint import NAME
from monai_unimedvl.weights.converting import pickled
from monai_unimedvl.weights.headers import MAIN, PICKLES, Entry, find_weights, read_header, read_json
from monai_unimedvl.weights.loading import ANSWERING, TOKENIZERS, fitted, tokenizer_of
from monai_unimedvl.weights.memory import Need, in_units, memory_needed
from monai_unimedvl.weights.report import PARTS_IN_WORDS, part_of
from monai_unimedvl.weights.source import Source, check_folder, is_ours, open_source

SHOWN = "FOLDER"  # stands for the path in commands, so that they say nothing about the machine


@dataclass(frozen=True)
class Finding:
    """Something to know.

    Args:
        level: "error" (it does not load), "warning" (it loads, but), or "note".
        what: a sentence without its full stop.
        mend: the flag or command, or "".
    """

    level: str
    what: str
    mend: str = ""

    def __str__(self) -> str:
        return f"{self.level}: {self.what}" + (f"\n    mend: {self.mend}" if self.mend else "")


@dataclass
class Checkup:
    """What was found.

    Args:
        kind: which model, in words.
        parts: part -> (numbers, bytes, types) of what lies in the files.
        sizes: depth, width and the like, by name.
        works: which of the jobs "answering" and "drawing" the folder can be loaded for.
    """

    name: str
    kind: str = "unknown"
    parts: dict[str, tuple[int, int, tuple[str, ...]]] = field(default_factory=dict)
    sizes: dict[str, Any] = field(default_factory=dict)
    files: dict[str, int] = field(default_factory=dict)
    findings: list[Finding] = field(default_factory=list)
    works: list[str] = field(default_factory=list)
    needs: list[Need] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether it loads for some job as it is."""
        return bool(self.works) and not any(finding.level == "error" for finding in self.findings)

    def error(self, what: object, mend: str = "") -> None:
        """Add what stops it from loading."""
        self.findings.append(Finding("error", str(what).rstrip("."), mend))

    def lines(self) -> list[str]:
        """For people."""
        said = [f"{self.name}: {self.kind}"]
        said += [f"  {name} {in_units(size)}" for name, size in self.files.items()]
        if self.sizes:
            said.append("  " + ", ".join(f"{name} {value}" for name, value in self.sizes.items()))
        for part in (part for part, _ in PARTS_IN_WORDS if part in self.parts):
            numbers, size, types = self.parts[part]
            said.append(f"  {part}: {numbers / 1e6:,.2f} M numbers, {in_units(size)}, {', '.join(types)}")
        said += [f"  {need}" for need in self.needs]
        said += [f"{finding}" for finding in self.findings]
        said.append(f"loads for {' and '.join(self.works)}" if self.ok else "does not load as it is")
        return said


def examine(path: str | Path) -> Checkup:
    """Look at a folder, or one file of it.

    Raises:
        ValueError: there is nothing at `path`.
    """
    path = Path(path)
    if not path.exists():
        raise ValueError(f"There is no file or folder {path}: check the path.")
    found = Checkup(path.name)
    if path.is_file():
        _file(path, found)
        return found
    if (path / "models").is_dir():  # a bundle
        path = path / "models"
    try:
        check_folder(path)
    except ValueError as error:
        found.error(error, "copy the files themselves: cp -L LINK FILE")
    _list(path, found)
    entries = _headers(path, found)
    if not _other_kinds(path, entries, found):
        _model(path, entries, found)
    if not found.parts:
        _count(entries, found)
    return found


def _file(file: Path, found: Checkup) -> None:
    """One file alone: what it holds, and what it is part of."""
    found.files[file.name] = file.stat().st_size
    if file.suffix.lower() == ".ckpt":
        found.kind = "a Lightning checkpoint"
        found.error(
            "a checkpoint of a training run is no folder of weights", "unimedvl consolidate FILE --out FOLDER"
        )
        return
    if file.suffix.lower() in PICKLES and file.name != NAME:
        found.kind = "a torch pickle"
        found.error(f"{file.name} is a pickle, which can run code when it is read", _unpickle(file.parent))
        return
    if file.name == NAME:
        found.kind = "weights of a MONAI bundle"
        found.error("one file was named, and its folder is the model", "unimedvl doctor BUNDLE")
        return
    try:
        entries = read_header(file)
    except ValueError as error:
        found.error(error, "fetch the file again, and compare its size with the original's")
        return
    _count(entries, found)
    found.kind = _by_names(entries)
    found.error("one file was named, expected the folder it lies in", "unimedvl doctor FOLDER")


def _list(folder: Path, found: Checkup) -> None:
    endings = (".safetensors", *PICKLES)
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() in endings and file.is_file():
            found.files[file.name] = file.stat().st_size


def _headers(folder: Path, found: Checkup) -> dict[str, Entry]:
    """Everything that can be read; damaged files are findings, each by its name."""
    entries: dict[str, Entry] = {}
    for file in sorted(folder.glob("*.safetensors")):
        try:
            entries |= read_header(file)
        except (ValueError, OSError) as error:
            found.error(
                error,
                f"fetch {file.name} alone again: hf download OWNER/NAME {file.name} --local-dir {SHOWN}",
            )
    return entries


def _count(entries: Mapping[str, Entry], found: Checkup) -> None:
    try:
        ours = _our_names(entries)
    except ValueError as error:
        found.error(error)
        return
    for name, entry in ours.items():
        numbers, size, types = found.parts.get(part_of(name), (0, 0, ()))
        kind = str(entry.dtype).removeprefix("torch.")
        found.parts[part_of(name)] = (
            numbers + entry.nbytes // entry.dtype.itemsize, size + entry.nbytes,
            types if kind in types else (*types, kind),
        )  # fmt: skip


def _our_names(entries: Mapping[str, Entry]) -> dict[str, Entry]:
    if any(part_of(name) != "elsewhere" for name in entries):
        return dict(entries)
    inside = [name for name in entries if name.startswith(("encoder.", "decoder.")) or "vae_model." in name]
    main = [name for name in entries if name not in inside]
    ours = dict(zip(upstream.to_ours({x: entries[x].meta() for x in main}), main, strict=False))
    return {name: entries[x] for name, x in ours.items()} | {f"autoencoder.{x}": entries[x] for x in inside}


def _other_kinds(folder: Path, entries: Mapping[str, Entry], found: Checkup) -> bool:
    """Whether the folder is something else than a model of ours; then what to do is a finding."""
    if (folder / "adapter_config.json").is_file():
        about = _json(folder / "adapter_config.json", found)
        found.kind = f"LoRA adapters (peft), rank {about.get('r', '?')}"
        found.error(
            "adapters are no model without the weights that they were trained on",
            f"unimedvl bundle export {SHOWN} NEW_BUNDLE --base BUNDLE",
        )
        return True
    if any(".lora_A." in name or ".lora_B." in name for name in entries):
        found.kind = "weights with LoRA adapters inside"
        found.error(
            "adapters lie among the weights, which were saved before they were merged",
            "training.adapters.merge_adapters(network), then weights.save",
        )
        return True
    if (folder / ".metadata").is_file() or any(folder.glob("*.distcp")):
        found.kind = "a sharded checkpoint of a training run"
        found.error(
            "shards of a run are no folder of weights", f"unimedvl consolidate {SHOWN} --out NEW_FOLDER"
        )
        return True
    about = _json(folder / "config.json", found) if (folder / "config.json").is_file() else {}
    if not is_ours(folder) and not (folder / "llm_config.json").is_file() and "model_type" in about:
        found.kind = f"a {about['model_type']} model of transformers"
        wanted = "llm_config.json and vit_config.json"
        if about["model_type"] == "bagel":
            found.error(
                f"config.json is BAGEL's, but {wanted} are missing", "copy both from the released model"
            )
        else:
            found.error(
                "this is another model, without the second expert and its autoencoder",
                "take a folder of UniMedVL or BAGEL",
            )
        return True
    return False


def _model(folder: Path, entries: Mapping[str, Entry], found: Checkup) -> None:
    """A folder that should load: by the checks of loading, in the order in which they are met."""
    pickles = pickled(folder) if not any(folder.glob("*.safetensors")) else []
    if pickles:
        found.kind = "BAGEL / UniMedVL, as torch pickles"
        found.error(f"{pickles[0].name} is a pickle, which can run code when it is read", _unpickle(folder))
        return
    try:
        source = open_source(folder)
    except ValueError as error:
        if not any(finding.level == "error" for finding in found.findings):
            known = any(part_of(name) != "elsewhere" for name in _our_names(entries))
            found.error(error, _mend_of("fine-tune" if known else str(error)))
        return
    _count({name: place.entry for name, place in source.places.items()}, found)
    found.kind = _kind(folder, source)
    found.sizes = _sizes(source)
    for finding in (*_words(folder, source), *_remarks(folder, source)):
        found.findings.append(finding)
    faults: dict[str, str] = {}
    for job, parts in (("answering", ANSWERING), ("drawing", PARTS)):
        for dtype in (None, torch.bfloat16):
            try:
                fitted(source, parts, dtype)
            except ValueError as error:
                faults.setdefault(job, str(error))
                continue
            if dtype is not None:
                found.findings.append(
                    Finding("warning", f"for {job}: {faults[job].rstrip('.')}", "dtype=torch.bfloat16, "
                            f"or unimedvl convert {SHOWN} NEW_FOLDER --dtype bfloat16")
                )  # fmt: skip
            found.works.append(job)
            break
    if not found.works:
        found.error(faults["answering"], _mend_of(faults["answering"]))
    elif "drawing" not in found.works:
        found.findings.append(
            Finding("warning", faults["drawing"].rstrip("."), f"unimedvl ask --model {SHOWN}, "
                    "or load(FOLDER, parts=weights.ANSWERING)")
        )  # fmt: skip
    found.needs = [need for job in found.works for need in memory_needed(source, job)]


def _words(folder: Path, source: Source) -> Iterator[Finding]:
    """About the tokenizer."""
    if not any((folder / name).is_file() for name in TOKENIZERS):
        yield Finding(
            "error", "there is no tokenizer",
            "copy tokenizer.json, or vocab.json and merges.txt, of the model that the weights began with "
            f"into {SHOWN}",
        )  # fmt: skip
        return
    try:
        tokenizer = Tokenizer.load(folder)
        if tokenizer.added:
            yield Finding(
                "warning",
                f"the tokenizer lacks {', '.join(tokenizer.added)}, and their rows would be untrained",
                "take the tokenizer of the released model",
            )
        else:
            tokenizer_of(folder, source)
    except ValueError as error:
        yield Finding("error", str(error).rstrip("."), "put back the tokenizer that came with the weights")


def _remarks(folder: Path, source: Source) -> Iterator[Finding]:
    """What loads, but is worth a word."""
    here = [stem for stem in MAIN if (folder / f"{stem}.safetensors").is_file()]
    if not is_ours(folder):
        used = find_weights(folder)[0].name
        average = used.startswith("ema")
        more = (
            f"; {', '.join(f'{x}.safetensors' for x in here[1:])} beside it is not read" if here[1:] else ""
        )
        yield Finding(
            "note", f"{used} is read, {'the average of the weights (EMA)' if average else 'no average (EMA)'}"
            f"{more}"
        )  # fmt: skip
        said = upstream.config_files(folder).get("vit_config.json", {}).get("num_hidden_layers")
        vision = source.config["vision"]["num_layers"]
        if said is not None and said == vision:
            yield Finding(
                "warning",
                f"vit_config.json counts {said} layers where the released one counts {vision + 1}: we take "
                f"the weights' {vision}, but the reference's scripts would build {said - 1}",
                f"unimedvl convert {SHOWN} NEW_FOLDER --layout upstream",
            )  # fmt: skip
        if not any(name in ("view_table", "latent_table") for name in source.places):
            yield Finding("note", "the position tables are not in the file, and are computed")
    types = {source.dtype(name) for name in source.names}
    if torch.float32 in types and sum(entry.entry.nbytes for entry in source.places.values()) > 4e9:
        yield Finding(
            "note", "weights are in float32, twice the size of bfloat16",
            f"unimedvl convert {SHOWN} NEW_FOLDER --dtype bfloat16",
        )  # fmt: skip


def _kind(folder: Path, source: Source) -> str:
    decoder = source.config["decoder"]
    released = (decoder["hidden_size"], decoder["num_layers"]) == (3584, 28)
    layout = "our layout" if is_ours(folder) else "layout of BAGEL / UniMedVL"
    size = "the released 14B shape" if released else "a network of its own size"
    if source.config.get("prediction") == "image":
        size = "the shape of the nano"
    return f"UniMedVL, {size}, {layout}"


def _sizes(source: Source) -> dict[str, Any]:
    decoder, vision = source.config["decoder"], source.config.get("vision")
    sizes = {
        "layers": decoder["num_layers"],
        "hidden": decoder["hidden_size"],
        "words": decoder["vocab_size"],
    }
    if vision:
        sizes["vision layers"] = vision["num_layers"]
    return {**sizes, "autoencoder": source.config["autoencoder"]["kind"]}


def _by_names(entries: Mapping[str, Entry]) -> str:
    ours = _our_names(entries)
    parts = sorted({part_of(name) for name in ours})
    return "weights of " + ", ".join(parts) if parts else "an empty file"


def _mend_of(error: str) -> str:
    """A command for the errors that have one."""
    if "fine-tune" in error:
        return f"load(FOLDER, base=BASE), or unimedvl convert {SHOWN} NEW_FOLDER --base BASE"
    if "shards" in error or "cut off" in error or "damaged" in error:
        return f"hf download OWNER/NAME --local-dir {SHOWN}"
    if "another program quantised" in error:
        return "take the original weights, and load(FOLDER, quantize='int8')"
    return ""


def _unpickle(folder: Path) -> str:
    del folder  # commands say FOLDER: reports go to others, and paths say who and where
    return f"unimedvl convert {SHOWN} NEW_FOLDER (reads tensors only, runs nothing)"


def _json(file: Path, found: Checkup) -> dict[str, Any]:
    try:
        return read_json(file)
    except ValueError as error:
        found.error(error)
        return {}
