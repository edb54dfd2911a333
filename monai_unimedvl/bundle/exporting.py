# SPDX-License-Identifier: Apache-2.0
"""A training run -> a bundle: a checkpoint, adapters, or a folder of weights, in the frame of another.

The configs and papers are those of the base; the scores are emptied, since they belong to other weights, and
`models/manifest.json` says what the weights came from.
"""

from __future__ import annotations

import json
import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from monai_unimedvl import __version__
from monai_unimedvl.bundle import places
from monai_unimedvl.bundle.opening import digest, load
from monai_unimedvl.bundle.shipping import contents, put
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import sha256
from monai_unimedvl.training.adapters import CONFIG as ADAPTER
from monai_unimedvl.training.adapters import load_adapters, merge_adapters
from monai_unimedvl.training.checkpoints import newest, read_network
from monai_unimedvl.weights.checkpoint import NAME, checkpoint_bytes
from monai_unimedvl.weights.io import our_config

SCORES = re.compile(r"(<!-- (scores[\w-]*) -->).*?(<!-- /\2 -->)", re.S)
UNSCORED = "No scores yet: these weights were fine-tuned, and the scores of the base would not be theirs."


def export(
    run: str | Path, out: str | Path, *, base: str | Path = places.DEFAULT, version: str | None = None,
    about: str = "",
) -> Path:  # fmt: skip
    """A run as a whole bundle in a new folder `out`, whose name the bundle gets; returns it.

    Args:
        run: a Lightning checkpoint (.ckpt), a folder with checkpoints, a folder of adapters (LoRA, merged
            here), or a bundle or folder of weights.
        base: the bundle that the run began with: its configs, papers and tokenizer.
        version: of the new bundle; None counts the base's on.
        about: a sentence for the changelog and the card: on what it was trained.

    Raises:
        ValueError: nothing there that holds weights, weights that do not fit the base, or `out` exists.
    """
    run = Path(run)
    name, files = contents(base)
    network, kind = _network(run, base)
    content = json.loads(files["configs/metadata.json"])
    version = version or _next(str(content.get("version", "0.1.0")))
    told = about or f"fine-tuned from {name} {content.get('version')}"
    content |= {"version": version, "name": f"{content.get('name', name)}, fine-tuned", "eval_metrics": {}}
    content["changelog"] = {version: told, **content.get("changelog", {})}
    content.pop("weights_of", None)
    manifest = {
        "software": f"monai_unimedvl {__version__}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "from": {"kind": kind, "sha256": sha256(run)},
        "base": {"name": name, "version": json.loads(files["configs/metadata.json"])["version"]}
        | {"weights": digest(base)},
        "about": told,
    }
    words = json.loads(files.get("models/config.json", b"{}")).get("tokenizer")
    files |= {
        "configs/metadata.json": _json(content),
        f"models/{NAME}": checkpoint_bytes(network.state_dict()),
        "models/config.json": _json(our_config(network, words)),
        "models/manifest.json": _json(manifest),
    }
    if "docs/README.md" in files:
        files["docs/README.md"] = _card(files["docs/README.md"].decode(), told, version).encode()
    files = {path: x for path, x in files.items() if not path.endswith(".safetensors")}
    return put(files, out)


def _network(run: Path, base: str | Path) -> tuple[UniMedVL, str]:
    """The network of a run and what kind of run it was."""
    if not run.exists():
        raise ValueError(f"{run} does not exist, expected a checkpoint, adapters or weights: check the path.")
    if run.suffix == ".ckpt":
        return read_network(run), "checkpoint"
    if (run / ADAPTER).is_file():
        network, _ = load(base)
        return merge_adapters(load_adapters(network, run)), "adapters, merged"
    for folder in (run, run / "checkpoints"):
        if folder.is_dir() and (found := newest(folder)) is not None:
            return read_network(found), "checkpoint"
    for folder in (run, run / "weights", run / "models"):
        if (folder / "config.json").is_file():
            return load(folder)[0], "weights"
    raise ValueError(f"{run} holds no checkpoint, adapters or weights: point to the folder that has them.")


def _card(readme: str, told: str, version: str) -> str:
    """The base's README, which says what is new and shows no score of the base."""
    text = SCORES.sub(rf"\1\n\n{UNSCORED}\n\n\3", readme)
    return text.replace("# Model Overview\n", f"# Model Overview\n\nVersion {version}: {told}.\n", 1)


def _next(version: str) -> str:
    """0.1.0 -> 0.1.1"""
    head, _, last = version.rpartition(".")
    return f"{head}.{int(last) + 1}" if head and last.isdigit() else f"{version}.1"


def _json(content: dict[str, Any]) -> bytes:
    return (json.dumps(content, indent=4, ensure_ascii=False) + "\n").encode()
