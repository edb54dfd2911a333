# SPDX-License-Identifier: Apache-2.0
"""One command makes a corpus of real scans and tissue out of packages; others' tools open it."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from monai_unimedvl.cli import main
from monai_unimedvl.data.corpus import Corpus
from monai_unimedvl.data.dialogue import dialogue
from monai_unimedvl.data.leaks import leak_report
from monai_unimedvl.data.plan import read_pipeline, shipped

PIPELINES = sorted(Path(shipped("atlas")).parent.glob("*.yaml"))


@pytest.mark.parametrize("path", PIPELINES, ids=lambda path: path.stem)
def test_a_shipped_pipeline_says_what_it_takes_and_under_which_licence(path: Path) -> None:
    pipeline = read_pipeline(path)
    assert pipeline.name == path.stem and pipeline.about
    for source in pipeline.sources:
        assert source["step"] == "atlas" or source["licence"] and source["origin"] and source["dataset"]
    with pytest.raises(ValueError, match="is no file"):
        read_pipeline(shipped("no-such-pipeline"))


@pytest.mark.slow
def test_one_command_builds_a_corpus_of_real_packages(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    datasets = pytest.importorskip("datasets", reason="needs the extra 'data'")
    pandas = pytest.importorskip("pandas", reason="datasets brings it")
    pytest.importorskip("data_store", reason="the DICOM files are pydicom-data's, of the extra 'demo'")
    folder = tmp_path / "corpus"
    assert main(["data", "build", "atlas", "--out", str(folder), "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "licences: " in said and "wrote" in said
    manifest = json.loads((folder / "manifest.json").read_text("utf8"))
    tasks = manifest["counts"]["sub_task_type"]
    assert {"vqa", "caption", "text-to-image", "super-resolution", "staining", "translation"} <= set(tasks)
    atlas = not any(name.startswith("atlas") for name in manifest["absent"])
    assert not atlas or {"segmentation", "seg-tumour"} & set(tasks)
    for step in manifest["steps"]:
        assert step["in"] == step["kept"] + step["rejected"]
    reports = importlib.util.find_spec("torchxrayvision") is not None  # 28 MB, and not for commercial use
    assert ("CC-BY-NC-ND-4.0" in manifest["licences"]) == ("impression" in tasks) == reports
    assert ("ingest-reports open-i" in manifest["absent"]) != reports

    rows = datasets.load_dataset("parquet", data_files=str(folder / "shard-*.parquet"), split="train",
                                 cache_dir=str(tmp_path / "cache"))  # fmt: skip
    assert len(rows) == manifest["records"] and rows.features["input_img"].feature == datasets.Image()
    drawn = next(row for row in rows if row["sub_task_type"] == "staining")
    assert drawn["output_img"][0].size == (512, 512) or min(drawn["output_img"][0].size) >= 48
    frame = pandas.concat(pandas.read_parquet(path) for path in sorted(folder.glob("shard-*.parquet")))
    assert frame["licence"].isin(list(manifest["licences"])).all()
    card = (folder / "card.md").read_text("utf8")
    assert all(f"| {licence} |" in card for licence in manifest["licences"])
    assert all(source.split("\t")[1] in card for source in manifest["sources"])

    records = list(Corpus(folder))
    report = leak_report(records)
    assert report.clean and report.slabs == 1
    for record in records[:: len(records) // 40]:
        dialogue(record)
    assert not any(word in card for word in (str(tmp_path), str(Path.home())))
    croissant = pytest.importorskip("mlcroissant", reason="needs the extra 'test'")
    described = croissant.Dataset(jsonld=str(folder / "croissant.json"))
    assert not described.metadata.ctx.issues.errors
    assert described.metadata.name == "atlas"
