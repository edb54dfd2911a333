# SPDX-License-Identifier: Apache-2.0
"""Bundles from elsewhere: a zip by address or file, a release on GitHub, a repository on the Hub, the zoo.

Everything is read into a folder aside and looked at before it is moved into place: nothing is half there.
What comes may hold no path out of its folder, no link, no code and no pickle. Nothing of it is run.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from urllib.error import URLError
from urllib.parse import quote, urlsplit
from urllib.request import Request, url2pathname, urlopen
from zipfile import BadZipFile, ZipFile

from monai_unimedvl.atomic import new_folder
from monai_unimedvl.bundle.checks import Finding, verify

HUB = "https://huggingface.co"
MOST = 2_000_000_000  # bytes that one bundle may unpack to
SOURCES = (
    "a .zip (path, file:// or https://), github:OWNER/REPO/TAG/NAME, hub:OWNER/NAME[@REVISION] or "
    "zoo:NAME[@VERSION]"
)


def download(source: str | Path, folder: str | Path, *, sha256: str | None = None) -> tuple[Path, str]:
    """A bundle from elsewhere as a new folder inside `folder`; returns it and the sha256 of what came.

    Args:
        source: one of `SOURCES`.
        folder: in which NAME/ is made, and must not be there yet.
        sha256: that the zip must have, or for the Hub the list of its files; None takes any.

    Raises:
        ValueError: no such source, another hash, a zip that is damaged or leads out of its folder, what is no
            bundle, or a place that cannot be written. Nothing is then left.
    """
    files, name, found = _from_hub(str(source)) if _is_hub(str(source)) else _from_zip(str(source))
    if sha256 and found != sha256.lower():
        raise ValueError(
            f"{source} has sha256 {found}, expected {sha256.lower()}: it was changed or damaged on the way; "
            "ask who gave you the hash."
        )
    folder = Path(folder)
    target = folder / name
    if target.exists():
        raise ValueError(
            f"{target} exists already, but a new folder is expected: remove it or choose another."
        )
    with new_folder(target) as aside:
        for path, content in files.items():
            (aside / path).parent.mkdir(parents=True, exist_ok=True)
            (aside / path).write_bytes(content)
        if wrong := [finding for finding in verify(aside, run=False) if not _only_age(finding)]:
            more = (
                f" (and {len(wrong) - 1} more: unpack it and run `unimedvl bundle verify`)"
                if wrong[1:]
                else ""
            )
            raise ValueError(f"{name} was not installed: {wrong[0]}{more}")
    return target, found


def unpacked(content: bytes, said: str) -> tuple[dict[str, bytes], str]:
    """The files of a bundle's zip and its name, the one folder at the top.

    Raises:
        ValueError: damaged, not one folder, a path or link that leads elsewhere, or far too large.
    """
    try:
        with ZipFile(io.BytesIO(content)) as archive:
            entries = [entry for entry in archive.infolist() if not entry.is_dir()]
            for entry in entries:
                path = PurePosixPath(entry.filename.replace("\\", "/"))
                linked = (entry.external_attr >> 16) & 0o170000 == 0o120000
                if path.is_absolute() or ".." in path.parts or ":" in path.parts[0] or linked:
                    raise ValueError(
                        f"{said} holds {entry.filename!r}, which leads out of its folder: do not use this "
                        "file."
                    )
            if sum(entry.file_size for entry in entries) > MOST:
                raise ValueError(f"{said} unpacks to more than {MOST / 1e9:g} GB: that is no bundle of ours.")
            tops = {PurePosixPath(entry.filename).parts[0] for entry in entries}
            if len(tops) != 1 or any(len(PurePosixPath(entry.filename).parts) < 2 for entry in entries):
                raise ValueError(
                    f"{said} holds {', '.join(sorted(tops)[:3]) or 'nothing'} at the top, expected one "
                    "folder named like the bundle: pack it with `unimedvl bundle pack`."
                )
            (name,) = tops
            return {e.filename.split("/", 1)[1]: archive.read(e) for e in entries}, name
    except (BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{said} is no readable zip ({error}): fetch it again.") from error


def _from_zip(source: str) -> tuple[dict[str, bytes], str, str]:
    address = source
    if found := re.fullmatch(r"github:([\w.-]+)/([\w.-]+)/([\w.-]+)/([\w.-]+)", source):
        owner, repo, tag, name = found.groups()
        asset = f"{name.removesuffix('.zip')}.zip"
        base = os.environ.get("GITHUB_SERVER_URL", "https://github.com")
        address = f"{base}/{owner}/{repo}/releases/download/{tag}/{asset}"
    said = PurePosixPath(urlsplit(address).path).name or address
    if urlsplit(address).scheme in ("http", "https"):
        content = _get(address)
    else:
        path = Path(url2pathname(urlsplit(address).path) if address.startswith("file://") else address)
        if not path.is_file():
            raise ValueError(f"{source} is no file, expected {SOURCES}: check the source.")
        content = path.read_bytes()
    files, name = unpacked(content, said)
    return files, name, hashlib.sha256(content).hexdigest()


def _is_hub(source: str) -> bool:
    return source.startswith(("hub:", "zoo:"))


def _from_hub(source: str) -> tuple[dict[str, bytes], str, str]:
    """Every file of a repository at one revision; large ones are checked against the hash that it lists."""
    found = re.fullmatch(r"(hub|zoo):(?:([\w.-]+)/)?([\w.-]+)(?:@([\w./-]+))?", source)
    if found is None or (found[1] == "hub") != bool(found[2]):
        raise ValueError(f"{source!r} names no repository, expected {SOURCES}: check the source.")
    repo, revision = f"{found[2] or 'MONAI'}/{found[3]}", found[4] or "main"
    base = os.environ.get("HF_ENDPOINT", HUB).rstrip("/")
    listing = _get(f"{base}/api/models/{repo}/tree/{quote(revision, safe='')}?recursive=true")
    try:
        entries = [entry for entry in json.loads(listing) if entry["type"] == "file"]
        wanted = {entry["path"]: (entry.get("lfs") or {}).get("oid") for entry in entries}
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{repo} lists no files that can be read: check the name and HF_ENDPOINT."
        ) from error
    files: dict[str, bytes] = {}
    for path, oid in sorted(wanted.items()):
        parts = PurePosixPath(path).parts
        if path.startswith("/") or ".." in parts or "\\" in path:
            raise ValueError(f"{repo} lists {path!r}, which leads out of its folder: do not use it.")
        if path in (".gitattributes",):
            continue
        content = _get(f"{base}/{repo}/resolve/{quote(revision, safe='')}/{quote(path)}")
        if oid and hashlib.sha256(content).hexdigest() != oid.removeprefix("sha256:"):
            raise ValueError(f"{path} of {repo} is not what the Hub lists (another sha256): fetch it again.")
        files[path] = content
    if not files:
        raise ValueError(f"{repo} holds no files at {revision!r}: check the revision.")
    each = "\n".join(f"{hashlib.sha256(content).hexdigest()} {path}" for path, content in files.items())
    return files, found[3], hashlib.sha256(each.encode()).hexdigest()


def _get(address: str) -> bytes:
    """What lies at an address, up to `MOST` bytes."""
    headers = {"User-Agent": "monai-unimedvl"}
    token = os.environ.get("HF_TOKEN")
    if token and address.startswith(os.environ.get("HF_ENDPOINT", HUB).rstrip("/") + "/"):
        headers["Authorization"] = f"Bearer {token}"
    try:
        with urlopen(Request(address, headers=headers), timeout=60) as answer:  # noqa: S310 (http and https)
            return b"".join(_pieces(answer, address))
    except (URLError, OSError, ValueError) as error:
        if isinstance(error, ValueError) and "GB" in str(error):
            raise
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or error
        raise ValueError(
            f"{address} cannot be fetched ({reason}): check the address and the network, or fetch the zip by "
            "other means and name the file."
        ) from error


def _pieces(answer: object, address: str) -> Iterator[bytes]:
    size = 0
    while piece := answer.read(1 << 20):  # type: ignore[attr-defined]
        size += len(piece)
        if size > MOST:
            raise ValueError(f"{address} is larger than {MOST / 1e9:g} GB: that is no bundle of ours.")
        yield piece


def _only_age(finding: Finding) -> bool:
    """Versions that are not installed are said by `verify`; they do not stop a download."""
    return "was made with" in finding.problem or "is not installed" in finding.problem
