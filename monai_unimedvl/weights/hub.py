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

from monai_unimedvl.weights.headers import read_json, spare_shards

NAME = r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?"
WANTED = ("*.json", "*.safetensors", "merges.txt", "vocab.json")
UNWANTED = ("optimizer*", "*/*")
THEIRS = ("huggingface_hub", "httpx", "httpx2", "httpcore", "requests")  # whose errors are of the way there


def is_name(folder: str | Path) -> bool:
    """Whether it reads like a repository of the Hub, OWNER/NAME[@REVISION], and nothing lies there."""
    return isinstance(folder, str) and not Path(folder).exists() and bool(re.fullmatch(NAME, folder))


def located(folder: str | Path, parts: tuple[str, ...]) -> Path:
    """The folder itself, or that of a repository of the Hub, fetched if need be.

    Args:
        parts: files that hold nothing of them are not fetched.

    Raises:
        ValueError: neither a folder nor in the cache, and the Hub is out of reach or has no such repository.
    """
    if not is_name(folder):
        return Path(folder)
    repository, _, revision = str(folder).partition("@")
    hub, there = optional_import("huggingface_hub")
    if not there:
        raise ValueError(
            f"There is no folder {folder}, and huggingface_hub, which could fetch {repository}, is not "
            "installed: check the path, or pip install huggingface_hub."
        )
    options: dict[str, Any] = {"repo_id": repository, "revision": revision or None, "endpoint": _endpoint()}
    try:
        if offline():  # what is missing then, the headers tell
            return Path(hub.snapshot_download(**options, allow_patterns=["*.json"], local_files_only=True))
        skipped = [*UNWANTED, *_useless(hub, options, parts)]
        return Path(hub.snapshot_download(**options, allow_patterns=list(WANTED), ignore_patterns=skipped))
    except Exception as error:  # the library and the network raise many kinds
        if not isinstance(error, OSError) and type(error).__module__.split(".")[0] not in THEIRS:
            raise
        raise ValueError(_said(str(folder), repository, error)) from error


def offline() -> bool:
    """Whether the user forbids the network (HF_HUB_OFFLINE=1)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def _endpoint() -> str | None:
    return os.environ.get("HF_ENDPOINT")


def _useless(hub: Any, options: dict[str, Any], parts: tuple[str, ...]) -> list[str]:
    """Files that hold nothing of the wanted parts, by the index of the shards."""
    useless = [] if "autoencoder" in parts else ["ae.safetensors", "vae_model.safetensors"]
    api = hub.HfApi(endpoint=options["endpoint"])
    for name in api.list_repo_files(options["repo_id"], revision=options["revision"]):
        if name.endswith(".safetensors.index.json") and "/" not in name:
            index = read_json(Path(hub.hf_hub_download(filename=name, **options)))
            useless += sorted(spare_shards(index.get("weight_map", {}), parts))
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
