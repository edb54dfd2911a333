# SPDX-License-Identifier: Apache-2.0
"""Where bundles lie: those that came with the package, and folders.

The shipped ones are kept without duplicates: what all have, and the trained weights, lie in one of them,
which the others name (`"weights_of"` in their metadata); parts of their papers lie in `shared/fragments`.
`shipping.compose` makes a whole bundle of each.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow

from monai_unimedvl.weights.headers import read_json

_HERE = Path(__file__).resolve().parents[1]
BUNDLES = _HERE / "bundles" if (_HERE / "bundles").is_dir() else _HERE.parent / "bundles"
DEFAULT = "unimedvl_nano"
SHARED = "shared"


def available() -> list[str]:
    """Names of the bundles that came with the package."""
    if not BUNDLES.is_dir():
        return []
    return sorted(path.name for path in BUNDLES.iterdir() if (path / "configs" / "metadata.json").is_file())


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
    it, and they are our callers. Without them it is the working directory, if that is a bundle.

    Args:
        name: of the shipped bundle that the config was written for, for the sentence.

    Raises:
        ValueError: nobody knows; another bundle than the config's would answer with other weights.
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
    if not (here / "configs" / "metadata.json").is_file():
        raise ValueError(
            f"a config of {name} is read by itself, which does not say where its bundle lies: set "
            "parser['bundle_root'] to that folder, or use monai.bundle.load or ConfigWorkflow."
        )
    return str(here)


def models(path: str | Path = DEFAULT) -> Path:
    """The folder with the weights: a bundle's `models/`, that of the one it names, or the folder itself."""
    folder = find(path)
    if (folder / "models").is_dir():
        return folder / "models"
    named = metadata(folder).get("weights_of")
    if isinstance(named, str) and folder.resolve().parent == BUNDLES.resolve():
        return BUNDLES / named / "models"
    return folder


def kept(path: str | Path, output_dir: str | Path) -> str:
    """Where fine-tuning keeps its best weights: in the bundle, or, as a shipped one stays what it is, in
    `output_dir`/models.
    """
    shipped = Path(path).resolve().parent == BUNDLES.resolve()
    return str((Path(output_dir) if shipped else Path(path)) / "models")


def metadata(path: str | Path = DEFAULT) -> dict[str, Any]:
    """What `configs/metadata.json` says; empty for a bare weights folder."""
    file = find(path) / "configs" / "metadata.json"
    return read_json(file) if file.is_file() else {}
