# SPDX-License-Identifier: Apache-2.0
"""Records in files: what is written is what is read, in each form, and whole or not there."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from monai_unimedvl.data.files import Sink, read_records, rejects_beside, write_json, write_records
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject


def record(number: int) -> Record:
    return Record(
        id=f"r{number}",
        main_task_type="image-to-text",
        sub_task_type="vqa",
        modality="mri",
        dataset="d",
        licence="MIT",
        source="s",
        input_img=(ImageFile("images/a.png", 8, 9, {"plane": "axial"}),),
        message=(Message("human", "Was ist das? é"), Message("gpt", "MRI")),
        facts={"labels": ["a"]},
        provenance={"message": {"by": "x"}},
    )


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_is_written_is_read_again(tmp_path: Path, name: str) -> None:
    made = [record(number) for number in range(300)]
    left = Reject("too-long", "it is too long.", "r9", "coarse")
    assert write_records([*made[:200], left, *made[200:]], tmp_path / name) == {"records": 300, "rejects": 1}
    assert list(read_records(tmp_path / name)) == made
    assert '"too-long"' in rejects_beside(tmp_path / name).read_text()
    write_records(made[:2], tmp_path / name)
    assert not rejects_beside(tmp_path / name).exists()  # of the last run there are none
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_a_run_that_breaks_leaves_what_was_there(tmp_path: Path, name: str) -> None:
    write_records([record(1)], tmp_path / name)
    with pytest.raises(RuntimeError), Sink(tmp_path / name) as sink:
        sink.put(record(2))
        sink.put(Reject("too-long", "x."))
        raise RuntimeError
    assert [item.id for item in read_records(tmp_path / name)] == ["r1"]
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_files_of_another_kind_are_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken.parquet").write_bytes(b"PAR1 no")
    (tmp_path / "b.csv").write_text("id")
    for name, message in [
        ("b.csv", "unknown suffix"), ("far", "far does not exist"), ("a.jsonl", "is no file"),
        ("a.parquet", "is no file"), (".", "holds no"), ("broken.parquet", "cannot be read as Parquet"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            list(read_records(tmp_path / name))
    with pytest.raises(ValueError, match="expected .jsonl or .parquet"):
        Sink(tmp_path / "a.csv")


def test_a_parquet_row_that_is_no_record_is_a_reject(tmp_path: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    pyarrow.parquet.write_table(
        pyarrow.table({"id": ["x", "y"], "words": ["a", "b"]}), tmp_path / "a.parquet"
    )
    found = list(read_records(tmp_path / "a.parquet"))
    assert all(item.reason and "a.parquet" not in item.reason for item in found)
    assert [(item.code, item.place) for item in found] == [
        ("bad-row", "row 1"),
        ("bad-row", "row 2"),
    ]


def test_json_is_written_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "deep" / "a.json", {"a": [1, "é"]})
    assert (tmp_path / "deep" / "a.json").read_text("utf8") == '{\n  "a": [\n    1,\n    "é"\n  ]\n}\n'


@pytest.mark.parametrize("name", ["a.jsonl", "a.parquet"])
def test_what_cannot_be_written_leaves_nothing_and_what_was_there(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / name).mkdir()
    with pytest.raises(ValueError, match=rf"{name} cannot be written \(Is a directory\): choose another"):
        write_records([record(1)], tmp_path / name)
    (tmp_path / name).rmdir()
    write_records([record(1)], tmp_path / name)
    with monkeypatch.context() as during:
        during.setattr(os, "chmod", lambda *_: (_ for _ in ()).throw(OSError(errno.ENOSPC, "disk full")))
        with pytest.raises(ValueError, match=r"cannot be written \(disk full\)"):
            write_records([record(2), Reject("too-long", "it is too long.", "r9", "coarse")], tmp_path / name)
    assert [each.id for each in read_records(tmp_path / name)] == ["r1"]
    assert sorted(path.name for path in tmp_path.iterdir()) == [name]
