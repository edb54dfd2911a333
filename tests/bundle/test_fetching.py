# SPDX-License-Identifier: Apache-2.0
"""Bundles from a file, from a server on loopback and from a Hub of ours; what is wrong leaves nothing "
"behind."""

from __future__ import annotations

import hashlib
import io
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from zipfile import ZipFile, ZipInfo

import pytest
import torch

from monai_unimedvl import bundle
from monai_unimedvl.bundle.fetching import download

NAME = "unimedvl_image_translation"
Serve = Callable[[dict[str, bytes]], str]


def hub_pages(repo: str, revision: str, files: dict[str, bytes], oids: dict[str, str]) -> dict[str, bytes]:
    """What the Hub says about a repository."""
    entries = [
        {"type": "file", "path": path, **({"lfs": {"oid": oids[path]}} if path in oids else {})}
        for path in files
    ]
    pages = {f"/{repo}/resolve/{revision}/{path}": content for path, content in files.items()}
    return {**pages, f"/api/models/{repo}/tree/{revision}": json.dumps(entries).encode()}


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def changed(zipped: Path, changes: dict[str, bytes | None]) -> bytes:
    """The zip with files replaced, added, or (None) left out."""
    stream = io.BytesIO()
    with ZipFile(zipped) as old, ZipFile(stream, "w") as new:
        for entry in old.namelist():
            if entry.removeprefix(f"{NAME}/") not in changes:
                new.writestr(entry, old.read(entry))
        for name, content in changes.items():
            if content is not None:
                new.writestr(f"{NAME}/{name}", content)
    return stream.getvalue()


@pytest.mark.parametrize("how", ["path", "file", "http"])
def test_a_zip_becomes_the_bundle_that_was_packed(
    zipped: Path, whole: Path, tmp_path: Path, serve: Serve, how: str
) -> None:
    source = {"path": str(zipped), "file": zipped.as_uri()}.get(
        how
    ) or f"{serve({'/a/b.zip': zipped.read_bytes()})}/a/b.zip"
    path, found = download(source, tmp_path / "here", sha256=sha(zipped.read_bytes()))
    assert path == tmp_path / "here" / NAME and found == sha(zipped.read_bytes())
    assert bundle.digest(path) == bundle.digest(whole) and stat.S_IMODE(path.stat().st_mode) == 0o755
    with pytest.raises(ValueError, match=f"{NAME} exists already, but a new folder is expected"):
        download(source, tmp_path / "here")
    assert [entry.name for entry in (tmp_path / "here").iterdir()] == [NAME]


def test_a_release_on_github(zipped: Path, tmp_path: Path, serve: Serve, monkeypatch) -> None:
    page = f"/me/mine/releases/download/v1/{NAME}_v0.1.0.zip"
    monkeypatch.setenv("GITHUB_SERVER_URL", serve({page: zipped.read_bytes()}))
    path, _ = download(f"github:me/mine/v1/{NAME}_v0.1.0", tmp_path / "here")
    assert (path / "models" / "model.pt").is_file()
    with pytest.raises(ValueError, match=r"other.zip cannot be fetched \(Not Found\): check the address"):
        download("github:me/mine/v1/other", tmp_path / "there")


@pytest.mark.parametrize("source", [f"hub:me/{NAME}@v2", f"zoo:{NAME}@v2"])
def test_a_repository_on_the_hub_and_the_zoo(
    files: dict[str, bytes], tmp_path: Path, serve: Serve, monkeypatch: pytest.MonkeyPatch, source: str
) -> None:
    repo = f"{'me' if source.startswith('hub') else 'MONAI'}/{NAME}"
    oids = {"models/model.pt": sha(files["models/model.pt"])}
    monkeypatch.setenv("HF_ENDPOINT", serve(hub_pages(repo, "v2", files, oids)))
    path, found = download(source, tmp_path / "here")
    assert path.name == NAME and (path / "models" / "model.pt").read_bytes() == files["models/model.pt"]
    assert download(source, tmp_path / "again", sha256=found)[1] == found
    monkeypatch.setenv("HF_ENDPOINT", serve(hub_pages(repo, "v2", files, {"models/model.pt": "0" * 64})))
    with pytest.raises(ValueError, match="model.pt of .* is not what the Hub lists"):
        download(source, tmp_path / "third")
    assert not (tmp_path / "third").exists()


def evil(name: str, mode: int = 0) -> Callable[[Path], bytes]:
    def make(zipped: Path) -> bytes:
        stream = io.BytesIO(zipped.read_bytes())
        with ZipFile(stream, "a") as archive:
            entry = ZipInfo(name)
            entry.external_attr = mode << 16
            archive.writestr(entry, b"x")
        return stream.getvalue()

    return make


class Payload:
    def __reduce__(self):
        return (exec, ("raise SystemExit('the payload ran')",))


def pickled() -> bytes:
    stream = io.BytesIO()
    torch.save({"network.x": Payload()}, stream)
    return stream.getvalue()


WRONG: dict[str, tuple[Callable[[Path], bytes], str]] = {
    "no zip": (lambda z: b"nothing", "wrong.zip is no readable zip"),
    "cut": (lambda z: z.read_bytes()[:5000], "wrong.zip is no readable zip"),
    "zip slip": (evil("../../evil.txt"), "holds '../../evil.txt', which leads out of its folder: do not"),
    "inner slip": (evil(f"{NAME}/../../evil.txt"), "which leads out of its folder"),
    "absolute": (evil("/etc/evil"), "which leads out of its folder"),
    "backslash": (evil("..\\evil.txt"), "which leads out of its folder"),
    "link": (evil(f"{NAME}/link", 0o120777), "which leads out of its folder"),
    "two tops": (evil("other/file"), "at the top, expected one folder named like the bundle"),
    "bad json": (
        lambda z: changed(z, {"configs/metadata.json": b'{\n"a" 1}'}),
        f"{NAME} was not installed: configs/metadata.json:2: no JSON",
    ),
    "missing key": (
        lambda z: changed(z, {"configs/metadata.json": b'{"schema": "meta_schema_20240725.json"}'}),
        "was not installed: configs/metadata.json.*required property; add it. \\(and \\d+ more",
    ),
    "no metadata": (
        lambda z: changed(z, {"configs/metadata.json": None}),
        "was not installed: configs/metadata.json: the file is missing",
    ),
    "code": (lambda z: changed(z, {"scripts/net.py": b"1"}), "scripts/net.py: a bundle holds no code"),
    "pickle": (lambda z: changed(z, {"models/x.pkl": b"1"}), "models/x.pkl: the file may hold a pickle"),
    "pickled model": (
        lambda z: changed(z, {"models/model.pt": pickled()}),
        "was not installed: models/model.pt: model.pt holds a pickle that asks for .*exec",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_zip_is_refused_in_one_line_and_leaves_nothing(
    zipped: Path, tmp_path: Path, name: str
) -> None:
    make, message = WRONG[name]
    (tmp_path / "wrong.zip").write_bytes(make(zipped))
    with pytest.raises(ValueError, match=message):
        download(tmp_path / "wrong.zip", tmp_path / "here")
    assert not (tmp_path / "here").exists() or not list((tmp_path / "here").iterdir())
    assert not list(tmp_path.rglob("evil*"))


def test_another_hash_and_a_place_that_cannot_be_written(zipped: Path, tmp_path: Path, monkeypatch) -> None:
    with pytest.raises(ValueError, match=f"has sha256 [0-9a-f]+, expected {'0' * 64}: it was changed"):
        download(zipped, tmp_path / "here", sha256="0" * 64)
    assert not (tmp_path / "here").exists()
    (tmp_path / "file").write_text("x")
    with pytest.raises(ValueError, match=f"{NAME} cannot be written"):
        download(zipped, tmp_path / "file")
    (tmp_path / "locked").mkdir()

    def refuse(*args: object) -> None:
        raise PermissionError(
            13, "Permission denied"
        )  # root may write everywhere, so a locked folder is played

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(
        ValueError, match=f"{NAME} cannot be written .Permission denied.: choose another place"
    ):
        download(zipped, tmp_path / "locked")
    assert not list((tmp_path / "locked").iterdir())


def test_monais_own_download_reads_our_zip(zipped: Path, whole: Path, tmp_path: Path, serve: Serve) -> None:
    from monai.bundle import download as monai_download
    from monai.bundle import load

    address = serve({f"/{NAME}.zip": zipped.read_bytes()})
    for place, url in (("f", zipped.as_uri()), ("h", f"{address}/{NAME}.zip")):
        folder = tmp_path / place
        monai_download(name=NAME, bundle_dir=str(folder), source="url", url=url, progress=False)
        assert bundle.digest(folder / NAME) == bundle.digest(whole)
    made = load(name=NAME, bundle_dir=str(folder), workflow_type="inference")
    assert made(torch.rand(1, 3, 64, 64)).shape == (1, 3, 64, 64)
    assert json.loads((folder / NAME / "configs" / "metadata.json").read_text("utf8"))["version"]
