# SPDX-License-Identifier: Apache-2.0
"""Names on the Hugging Face Hub, OWNER/NAME[@REVISION], as folders.

Only safetensors, configs and the tokenizer are fetched, and of a sharded checkpoint only the files that hold
the parts that are wanted. Without a network the local cache is used, and what is not there is said.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from monai.utils import optional_import

WANTED = ("*.json", "*.safetensors", "merges.txt", "vocab.json", "*.model")
UNWANTED = ("optimizer*", "*/*", "*.bin", "*.pt", "*.pth")
GENERATION = r"_moe_gen|\.generation\.|(^|\.)(vae2llm|llm2vae|time_embedder|latent_pos_embed)\."


def located(folder: str | Path, parts: tuple[str, ...]) -> Path:
    """The folder itself, or that of a repository of the Hub, fetched if need be.

    Args:
        parts: files that hold nothing of them are not fetched.

    Raises:
        ValueError: neither a folder nor in the cache, and the Hub is out of reach or has no such repository.
    """
    path = Path(folder)
    found = re.fullmatch(r"([\w-][\w.-]*/[\w.-]+?)(?:@([\w./-]+))?", str(folder))
    if path.exists() or isinstance(folder, Path) or found is None or str(folder).count("/") != 1:
        return path
    repository, revision = found[1], found[2]
    hub, there = optional_import("huggingface_hub")
    if not there:
        raise ValueError(
            f"There is no folder {folder}, and huggingface_hub, which could fetch {repository}, is not "
            "installed: check the path, or pip install huggingface_hub."
        )
    options: dict[str, Any] = {"repo_id": repository, "revision": revision, "endpoint": _endpoint()}
    try:
        if offline():
            return Path(hub.snapshot_download(**options, local_files_only=True))
        skipped = list(UNWANTED) + _useless(hub, options, parts)
        return Path(hub.snapshot_download(**options, allow_patterns=list(WANTED), ignore_patterns=skipped))
    except Exception as error:  # the library and the network raise many kinds
        raise ValueError(_said(str(folder), repository, error)) from error


def offline() -> bool:
    """Whether the user forbids the network (HF_HUB_OFFLINE=1)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _useless(hub: Any, options: dict[str, Any], parts: tuple[str, ...]) -> list[str]:
    """Files that hold nothing of the wanted parts, by the index of the shards."""
    from monai_unimedvl.weights.headers import read_json

    useless = [] if "autoencoder" in parts else ["ae.safetensors", "vae_model.safetensors"]
    if "generation" in parts:
        return useless
    files = (
        hub.list_repo_files(options["repo_id"], revision=options["revision"])
        if options["endpoint"] is None
        else hub.HfApi(endpoint=options["endpoint"]).list_repo_files(
            options["repo_id"], revision=options["revision"]
        )
    )
    for name in files:
        if not name.endswith(".safetensors.index.json") or "/" in name:
            continue
        weight_map = read_json(Path(hub.hf_hub_download(filename=name, **options))).get("weight_map", {})
        needed = {file for weight, file in weight_map.items() if not re.search(GENERATION, weight)}
        useless += sorted(set(weight_map.values()) - needed)
    return useless


def _said(folder: str, repository: str, error: Exception) -> str:
    kind = type(error).__name__
    if offline() or "Offline" in kind or kind == "LocalEntryNotFoundError":
        why = "HF_HUB_OFFLINE is set" if offline() else "the Hub is out of reach"
        return (
            f"There is no folder {folder}, {repository} is not in the local cache, and {why}: on a machine "
            f"with a network run `hf download {repository} --local-dir FOLDER`, and pass that folder."
        )
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError", "GatedRepoError"):
        return (
            f"There is no folder {folder}, and the Hub has no {repository} that you may read ({kind}): check "
            "the name, or set HF_TOKEN."
        )
    return (
        f"{repository} could not be fetched ({kind}): check the network, or run `hf download {repository} "
        "--local-dir FOLDER` and pass that folder."
    )
