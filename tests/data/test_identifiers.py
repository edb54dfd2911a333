# SPDX-License-Identifier: Apache-2.0
"""A patient planted in 33 tags, in names of files and in a report is in no byte that a whole build leaves.

Shards are searched as bytes and unpacked, since Parquet packs its columns; so are the parts that a build
keeps on the way, its papers, the review form and what is said.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from sources import PLANTED, dicom, planted_words, series

from monai_unimedvl.cli import main

pandas = pytest.importorskip("pandas", reason="datasets brings it, of the extra 'data'")
pytest.importorskip("pyarrow", reason="shards need the extra 'data'")
pytest.importorskip("imagehash", reason="fingerprints need the extra 'data'")
pytest.importorskip("jinja2", reason="the papers need the extra 'data'")

REPORT = """Patient: Quasimodo Esmeralda
Date: 31.12.2019
MRN: 4711081577

Findings: Seen on 31.12.2019 by Dr. Hugo, call 0331-555-777. The ventricles are not enlarged.
Impression: Normal brain.
"""
NAMES = ["Quasimodo", "Esmeralda", "Frollo", "Hugo", "PID-4711-0815", "4711081577", "31.12.2019"]


def unpacked(path: Path) -> str:
    """All words of a file: those of a shard's columns, of nested ones too, and its metadata."""
    if path.suffix != ".parquet":
        return path.read_bytes().decode("utf8", "replace")
    import pyarrow.parquet

    table = pyarrow.parquet.read_table(path)
    images = [
        cell["bytes"].decode("latin1") for name in ("input_img", "output_img")
        for row in table.column(name).to_pylist() for cell in row
    ]  # fmt: skip
    words = table.drop_columns(["input_img", "output_img"]).to_pylist()
    return " ".join([str(table.schema.metadata), json.dumps(words, default=str), *images])


def test_no_planted_identifier_is_in_anything_that_a_build_leaves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setenv("UNIMEDVL_SECRET", "tests")
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "Quasimodo_Esmeralda"
    series(folder / "PID-4711-0815", 3)
    dicom(folder / "us" / "Quasimodo.dcm", Modality="US")
    (folder / "Frollo.dcm").write_bytes(dicom(folder / "x.dcm").read_bytes()[:1900])
    (folder / "x.dcm").unlink()
    (tmp_path / "Hugo").mkdir()
    (tmp_path / "Hugo" / "Quasimodo.txt").write_text(REPORT)
    (tmp_path / "Hugo" / "Frollo.txt").write_text("Quasimodo came.")
    plan = {
        "name": "ours",
        "sources": [
            {"step": "ingest", "kind": "dicom", "path": str(folder), "dataset": "scans", "licence": "MIT"},
            {"step": "ingest", "kind": "reports", "path": "Hugo", "dataset": "reports", "licence": "MIT"},
        ],
        "steps": [
            {"step": "textify"}, {"step": "tasks", "keep": True},
            {"step": "coarse", "preset": "atlas", "min_side": 8}, {"step": "dedup"}, {"step": "split"},
            {"step": "review-sample", "count": 4},
        ],
    }  # fmt: skip
    (tmp_path / "ours.yaml").write_text(yaml.safe_dump(plan))
    out = tmp_path / "corpus"
    assert main(["data", "build", "ours.yaml", "--out", str(out), "--keep-work", "--quiet"]) == 0
    assert main(["data", "review", "form", str(out), "--out", str(out / "form.html")]) == 0
    assert main(["data", "leaks", str(out)]) == 0
    said = capsys.readouterr()
    left = {path: unpacked(path) for path in out.rglob("*") if path.is_file()}
    kinds = {path.suffix for path in left}
    assert {".parquet", ".json", ".jsonl", ".md", ".html", ".png"} <= kinds
    assert any("ventricles" in text for path, text in left.items() if path.suffix == ".parquet")
    assert any(path.name == "rejects.jsonl" and text for path, text in left.items())
    names = " ".join(str(path.relative_to(out)) for path in left)
    everything = {"what was said": said.out + said.err + caplog.text, "names of files": names, **left}
    assert len(PLANTED) + 3 >= 30
    for word in [*planted_words(), *NAMES]:
        for where, text in everything.items():
            assert word not in text, f"{word!r} in {where}"
