# SPDX-License-Identifier: Apache-2.0
"""Open a bundle: `load("unimedvl_nano")` -> network and tokenizer; copy a shipped one; fill in its papers.

A bundle is a folder with `models/` (a weights folder: config.json, model*.safetensors, tokenizer.json),
`configs/` and `docs/`. Where a bundle is expected a bare weights folder will do, ours or a released one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from monai.bundle import ConfigWorkflow

from monai_unimedvl import weights
from monai_unimedvl.data.fetch import licences
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import sha256, write
from monai_unimedvl.tokenizer import Tokenizer

_HERE = Path(__file__).resolve().parent
BUNDLES = _HERE / "bundles" if (_HERE / "bundles").is_dir() else _HERE.parent / "bundles"
DEFAULT = "unimedvl_nano"
DATA_LICENCES = """
The data that the model was trained on, and under which terms it came. Written by
monai_unimedvl.bundle.write_data_licences from the list that `unimedvl data fetch-atlas` reads.

No image of these sources is in this folder but those of samples/, named there. The sources were read from the
packages below; averages and slices of them were shown to the network as 64 x 64 pictures. Two variants are
trained: configs/train.json reads every source, configs/train_permissive.json leaves out those under the GPL.
"""
SMALL = 1_000_000_000  # bytes of weights; below that they are computed in float32 however they are kept


def available() -> list[str]:
    """Names of the bundles that came with the package."""
    return (
        sorted(path.name for path in BUNDLES.iterdir() if (path / "configs").is_dir())
        if BUNDLES.is_dir()
        else []
    )


def load(
    path: str | Path = DEFAULT, *, dtype: torch.dtype | None = None, device: torch.device | str | None = None
) -> tuple[UniMedVL, Tokenizer]:
    """The network, in eval mode, and the tokenizer of a bundle.

    Args:
        path: a name of `available()`, a bundle's folder, or a folder of weights.
        dtype: of the weights; None takes float32 for weights below 1 GB, and else what the files hold.
        device: None is the CPU.

    Raises:
        ValueError: no such folder, no weights or no tokenizer in it, or weights that do not fit their config.
    """
    folder = models(path)
    if dtype is None and sum(file.stat().st_size for file in folder.glob("*.safetensors")) < SMALL:
        dtype = torch.float32
    network, tokenizer = weights.load(folder, dtype=dtype, device=device)
    if tokenizer is None:
        raise ValueError(
            f"{folder.name} has weights but no tokenizer.json: copy the tokenizer's files there."
        )
    return network, tokenizer


def find(path: str | Path = DEFAULT) -> Path:
    """The folder that a name or a path means.

    Raises:
        ValueError: there is none.
    """
    if str(path) in available():
        return BUNDLES / str(path)
    folder = Path(path)
    if not folder.exists():
        shipped = ", ".join(available()) or "none is shipped here"
        raise ValueError(
            f"model {str(path)!r} is neither a folder nor a shipped bundle ({shipped}): check --model."
        )
    return folder


def running(name: str = DEFAULT) -> str:
    """The bundle whose config MONAI is working on: what `bundle_root` in a config says.

    A config is not told where it lies, but the workflow and the verbs of `monai.bundle` that evaluate it know
    it, and they are our callers. Without them: the working directory if that is a bundle, else the shipped
    bundle of that name.
    """
    frame = sys._getframe(1)
    while frame is not None:
        if str(frame.f_globals.get("__name__", "")).startswith("monai.bundle."):
            owner = frame.f_locals.get("self")
            folder = owner.config_root_path if isinstance(owner, ConfigWorkflow) else None
            files = frame.f_locals.get("config_file_") or ()  # of verify_net_in_out, ckpt_export ...
            for file in [files] if isinstance(files, str | Path) else files:
                folder = folder or Path(file).parent
            if folder is not None and (root := Path(folder).resolve()).name == "configs":
                return str(root.parent)
        frame = frame.f_back  # type: ignore[assignment]
    here = Path.cwd()
    return str(here if (here / "configs" / "metadata.json").is_file() else find(name))


def models(path: str | Path = DEFAULT) -> Path:
    """The folder with the weights: `models/` of a bundle, or the folder itself."""
    folder = find(path)
    return folder / "models" if (folder / "models").is_dir() else folder


def digest(path: str | Path = DEFAULT) -> str:
    """sha256 of the weights: of the hashes of the safetensors files, in the order of their names."""
    files = sorted(models(path).glob("*.safetensors"))
    stats = [(str(file), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return hashlib.sha256("\n".join(_hash(*stat) for stat in stats).encode()).hexdigest()


def metadata(path: str | Path = DEFAULT) -> dict[str, Any]:
    """What `configs/metadata.json` says; empty for a bare weights folder."""
    file = find(path) / "configs" / "metadata.json"
    return json.loads(file.read_text("utf8")) if file.is_file() else {}


def copy(name: str, folder: str | Path) -> Path:
    """A shipped bundle to change: copied to `folder`, which must not exist yet; whole or not at all.

    Raises:
        ValueError: no such bundle, or `folder` exists or cannot be made.
    """
    if name not in available():
        raise ValueError(
            f"there is no bundle {name!r}, expected one of {', '.join(available()) or 'none'}: name one."
        )
    folder = Path(folder)
    if folder.exists():
        raise ValueError(f"{folder} exists already, but a new folder is expected: choose another name.")
    aside = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    try:
        aside.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(BUNDLES / name, aside)
        os.replace(aside, folder)
    except OSError as error:
        raise ValueError(
            f"{folder} cannot be written ({error.strerror or error}): choose another place."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return folder


def write_data_licences(path: str | Path = DEFAULT) -> Path:
    """Write `docs/data_license.txt`: every source of the training data with version, licence and use.

    The versions are those that this machine would train with.
    """
    free = {name for name, *_ in licences(permissive_only=True)}
    lines = [DATA_LICENCES.strip(), ""]
    for name, version, licence, used in licences():
        mark = "both variants" if name in free else "not in the permissive-only variant"
        lines += [f"{name} {version}", f"  licence:  {licence}", f"  used for: {used}", f"  read by:  {mark}"]
        lines += [""]
    file = find(path) / "docs" / "data_license.txt"
    write(file, "\n".join(lines).encode())
    return file


def document(report: str | Path, path: str | Path = DEFAULT, marker: str = "scores") -> Path:
    """Put the scores of a saved report into a bundle's README and `eval_metrics`; returns the README.

    Args:
        report: the folder that `evaluate(out=...)` wrote.
        marker: of the place in docs/README.md, between `<!-- scores -->` and `<!-- /scores -->`.

    Raises:
        ValueError: no report there, or no such place in the README.
    """
    from monai_unimedvl.evaluation import Report, fill  # slow to import: only who writes papers pays

    found = Report.load(report)
    readme = find(path) / "docs" / "README.md"
    fill(readme, marker, found.table(groups=False))
    if marker == "scores":
        content = metadata(path)
        content["eval_metrics"] = {
            ", ".join(filter(None, [row.task, row.metric, row.section, row.setting])): round(row.value, 4)
            for row in found.rows
            if row.group == "all"
        }
        text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
        write(find(path) / "configs" / "metadata.json", text.encode())
    return readme


@lru_cache(maxsize=256)
def _hash(file: str, size: int, changed: int) -> str:
    return sha256(file)
