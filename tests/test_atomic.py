# SPDX-License-Identifier: Apache-2.0
"""Files and folders that are there whole or not at all."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from monai_unimedvl.atomic import into_folder, new_file, new_folder, write


def there(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*"))


@pytest.mark.parametrize("durable", [False, True])
def test_a_file_appears_when_its_block_ends_and_readable_to_others(tmp_path: Path, durable: bool) -> None:
    path = tmp_path / "deep" / "a.txt"
    with new_file(path, durable=durable) as part:
        part.write_text("new")
        assert not path.exists() and part.parent == path.parent and part.name.endswith(".part")
    usual = tmp_path / "usual"
    usual.touch()
    assert path.read_text() == "new" and path.stat().st_mode == usual.stat().st_mode


def test_what_must_outlive_a_power_cut_is_on_the_disk_before_and_after_its_move(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, seen = os.fsync, []
    monkeypatch.setattr(os, "fsync", lambda handle: seen.append((tmp_path / "a").exists()) or real(handle))
    with new_file(tmp_path / "a", durable=True) as part:
        part.write_text("new")
    assert seen == [False, True]  # the file, then its name in the folder
    write(tmp_path / "a", "newer")
    assert len(seen) == 2


def test_a_block_that_fails_leaves_the_file_as_it_was(tmp_path: Path) -> None:
    write(tmp_path / "a.txt", "old")
    with pytest.raises(KeyboardInterrupt), new_file(tmp_path / "a.txt") as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert there(tmp_path) == ["a.txt"] and (tmp_path / "a.txt").read_text() == "old"


def test_two_who_write_the_same_file_do_not_meet(tmp_path: Path) -> None:
    with new_file(tmp_path / "a") as one, new_file(tmp_path / "a") as two:
        one.write_bytes(b"1")
        two.write_bytes(b"2")
    assert (tmp_path / "a").read_bytes() == b"1" and there(tmp_path) == ["a"]


def test_words_are_written_as_they_stand(tmp_path: Path) -> None:
    write(tmp_path / "a", "Läsion\n")
    write(tmp_path / "b", b"\r\n")
    assert (tmp_path / "a").read_bytes() == b"L\xc3\xa4sion\n" and (tmp_path / "b").read_bytes() == b"\r\n"


def test_what_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    said = r"a cannot be written \(.+\): choose another place\.$"
    with pytest.raises(ValueError, match=said):
        write(tmp_path / "file" / "a", "")
    with pytest.raises(ValueError, match=said), new_folder(tmp_path / "file" / "a"):
        pass
    assert there(tmp_path) == ["file"]


def test_a_folder_appears_whole_and_takes_the_place_of_nothing_but_an_empty_one(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with new_folder(tmp_path / "out") as part:
        (part / "a").touch()
        assert there(tmp_path / "out") == []
    assert there(tmp_path) == ["out", "out/a"]
    with pytest.raises(ValueError, match="out is there already"), new_folder(tmp_path / "out"):
        pass
    with pytest.raises(RuntimeError), new_folder(tmp_path / "more") as part:
        (part / "a").touch()
        raise RuntimeError
    assert there(tmp_path) == ["out", "out/a"]


def test_files_are_moved_into_a_folder_the_one_that_names_it_last(tmp_path: Path) -> None:
    for name in ("config", "old-1", "old-2", "other"):
        (tmp_path / name).write_text("before")
    with pytest.raises(RuntimeError), into_folder(tmp_path, last=["config"], stale=["old-*"]) as part:
        (part / "config").write_text("after")
        raise RuntimeError
    assert there(tmp_path) == ["config", "old-1", "old-2", "other"]
    with into_folder(tmp_path, last=["config"], stale=["old-*"]) as part:
        for name in ("config", "old-2", "weights"):
            (part / name).write_text("after")
    assert there(tmp_path) == ["config", "old-2", "other", "weights"]
    assert [name for name in there(tmp_path) if (tmp_path / name).read_text() == "before"] == ["other"]


def test_a_kill_between_two_files_leaves_no_folder_that_is_taken_for_a_whole_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config").write_text("before")
    moved = []

    def replace(source: Path, target: Path) -> None:
        moved.append(target.name)
        raise OSError("the disk is gone")

    monkeypatch.setattr("os.replace", replace)
    with pytest.raises(OSError, match="gone"), into_folder(tmp_path, last=["config"]) as part:
        (part / "config").touch()
        (part / "weights").touch()
    assert moved == ["weights"] and there(tmp_path) == []


def test_a_file_is_no_folder_to_write_into(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(ValueError, match="file is a file, expected a folder"):
        with into_folder(tmp_path / "file", last=[]):
            pass
