# SPDX-License-Identifier: Apache-2.0
"""The whole way of a user: download, fine-tune on twenty real images, score, export, download again, ask.

And the model zoo's own checks, where a checkout of the zoo is at hand.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow
from PIL import Image

from monai_unimedvl import bundle
from monai_unimedvl.bundle.exporting import export
from monai_unimedvl.bundle.fetching import download
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.evaluation import Report

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore:parsing config_file")]
NAME = "unimedvl_vqa_report"
QUESTION = "What was this made with?"


@pytest.fixture(scope="module")
def twenty(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty real pictures with a question that the network was never asked, and answers of a new form."""
    folder = tmp_path_factory.mktemp("own")
    found = defaultdict(list)
    for entry in AtlasDataset(section="test", tasks=["vqa"], permissive_only=True, progress=False).entries:
        if entry.question == "contrast":
            found[entry.answer].append(entry.shown)
    rows = []
    for answer, pictures in sorted(found.items()):
        for pixels in pictures[:: max(1, len(pictures) // 5)][:5]:
            if len(rows) < 20:
                Image.fromarray(pixels).save(folder / f"{len(rows):02d}.png")
                rows.append((f"{len(rows):02d}.png", QUESTION, f"a {answer} machine"))
    with (folder / "questions.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([("image", "question", "answer"), *rows])
    assert len(rows) == 20
    return folder


def run(folder: Path, *names: str, kind: str, run_id: str = "run", **options: object) -> None:
    files = [str(folder / "configs" / f"{name}.json") for name in names]
    made = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **options)
    made.initialize()
    assert made.check_properties() == []
    made.run_id = run_id
    made.run()


def f1(folder: Path, data: Path, out: Path) -> float:
    options = {"dataset_dir": str(data), "output_dir": str(out)}
    run(folder, "inference", "evaluate", kind="evaluation", run_id="own", **options)
    return Report.load(out).find("answer", "token F1", "val").value


@pytest.mark.parametrize("engine", ["ignite", "lightning"])
def test_a_bundle_is_fetched_taught_scored_exported_and_fetched_again(
    engine: str, twenty: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    mine, _ = download(bundle.pack(NAME, tmp_path / "first.zip"), tmp_path / "mine")
    before = f1(mine, twenty, tmp_path / "before")
    over = ["train"] if engine == "ignite" else ["train", "train_lightning"]
    run(mine, *over, kind="train", dataset_dir=str(twenty), epochs=6, epoch_length=8, budget=1000)
    after = f1(mine, twenty, tmp_path / "after")
    assert after > before, f"token F1 on held-out images: {before:.3f} before, {after:.3f} after"
    source = mine if engine == "ignite" else tmp_path / "runs" / "checkpoints" / "best.ckpt"
    made = export(source, tmp_path / "taught", base=mine, about="fine-tuned on twenty pictures")
    again, _ = download(bundle.pack(made, tmp_path / "second.zip"), tmp_path / "again")
    assert bundle.digest(again) == bundle.digest(mine), "the very weights that were scored"
    options = {"dataset_dir": str(twenty / "00.png"), "question": QUESTION, "output_dir": "asked"}
    run(again, "inference", kind="inference", run_id="answer", **options)
    answer = json.loads((tmp_path / "asked" / "00-answer.json").read_text("utf8"))
    assert answer["text"] and (answer["prompt"], answer["weights"]) == (QUESTION, bundle.digest(again))


@pytest.mark.skipif(
    "UNIMEDVL_ZOO" not in os.environ, reason="UNIMEDVL_ZOO names no checkout of the model zoo"
)
@pytest.mark.parametrize("name", bundle.available())
@pytest.mark.parametrize("mode", ["min", "full"])
def test_the_model_zoos_own_checks_pass(name: str, mode: str, tmp_path: Path, root: Path) -> None:
    if mode == "full" and "large_weights" in bundle.metadata(name):
        mode = "min"  # nothing can be built without the weights
    shutil.copytree(Path(os.environ["UNIMEDVL_ZOO"]) / "ci", tmp_path / "ci")
    folder = bundle.copy(name, tmp_path / "models" / name)
    (tmp_path / "models" / "model_info.json").write_text("{}")
    (folder / "eval").mkdir()
    shutil.copy(root / "bundles" / "meta_schema_20240725.json", folder / "eval" / "schema.json")
    done = subprocess.run(
        [sys.executable, "ci/verify_bundle.py", "-b", name, "-p", "models", "-m", mode],
        cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(root)},
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-2000:]
