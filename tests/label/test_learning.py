# SPDX-License-Identifier: Apache-2.0
"""Labels on a real server: study lists, which to label next, agreement, training, and a kill in its midst."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from label_server import Server

from monai_unimedvl import bundle
from monai_unimedvl.label.folder import write_app
from monai_unimedvl.label.task import PARENT

pytestmark = pytest.mark.label
QUESTION = "What was this made with?"
NAMES = [{"name": "grey matter", "idx": 1}, {"name": "white matter", "idx": 2}, {"name": "CSF", "idx": 3}]


@pytest.fixture(scope="module")
def learner(served: Any, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """An app of its own, because it learns; its data store is a copy."""
    folder = tmp_path_factory.mktemp("learner")
    (folder / "studies").mkdir()
    for name in ("brain0", "brain1", "oblique"):
        content = (studies / f"{name}.nii.gz").read_bytes()
        (folder / "studies" / f"{name}.nii.gz").write_bytes(content)
    return served(write_app(folder / "app", modality="mri"), folder / "studies")


def test_a_study_list_goes_on_after_a_bad_image(learner: Server) -> None:
    body = {"images": ["brain0", "nobody", "brain1"], "question": "Which contrast or stain is this?"}
    done = learner.post("/batch/infer/answer?run_sync=true", body)
    assert set(done) == {"brain0", "brain1", "nobody"} and "names no image" in done["nobody"]["error"]
    assert done["brain0"]["params"]["answer"] == "T1"
    kept = learner.ask("GET", "/datastore/label", params={"label": "brain0", "tag": "original"}).json()
    assert kept["text"] == "T1" and kept["synthetic"] is True, "words are kept beside the image"
    learner.post("/batch/infer/segment_tissue?run_sync=true", {"images": ["brain1"], "slice": "3"})
    learner.post("/batch/infer/answer?run_sync=true&images=all", {"max_batch_size": 1, "label_tag": "more"})
    objects = learner.get("/datastore/?output=all").json()["objects"]
    assert objects["brain1"]["labels"]["original"]["ext"] == ".nii.gz"
    assert [name for name in objects if "more" in objects[name]["labels"]] == ["brain0"]
    assert "2 of 3 images done, 0 failed" in learner.log and "3 of 3 images done, 1 failed" in learner.log


def test_the_image_that_is_least_sure_is_labelled_next(learner: Server) -> None:
    asked = {"question": "Is the thalamus visible?"}
    sure = {name: learner.infer("answer", name, **asked) for name in ("brain0", "brain1", "oblique")}
    mean = {name: np.log(one["confidence"]) for name, one in sure.items()}
    found = learner.post("/activelearning/uncertainty", asked)
    assert found["id"] == min(mean, key=mean.__getitem__)
    assert found["logprob"] == pytest.approx(min(mean.values()), abs=1e-6) and found["measured"] == 3
    before = learner.log.count("asked about 3 images anew")
    assert learner.post("/activelearning/uncertainty", asked)["id"] == found["id"]
    assert learner.log.count("asked about 3 images anew") == before, "what was measured is known"
    answer = json.dumps({"question": QUESTION, "answer": "yes"}).encode()
    learner.label(found["id"], answer, "a.json")
    try:
        assert learner.post("/activelearning/uncertainty", asked)["id"] != found["id"]
    finally:
        gone = learner.ask("DELETE", "/datastore/label", params={"id": found["id"], "tag": "final"})
        assert gone.status_code == 200


def test_agreement_is_dice_by_name(learner: Server, tmp_path: Path) -> None:
    made = learner.volume("segment_tissue", "brain1", slice="3")
    values = np.asarray(made.dataobj).copy()
    learner.label("brain1", Path(made.get_filename()).read_bytes(), "m.nii.gz", "original", label_info=NAMES)
    values[values == 3] = 0
    half = np.argwhere(values == 1)
    values[tuple(half[: len(half) // 2].T)] = 2
    nibabel.save(nibabel.Nifti1Image(values, made.affine), tmp_path / "final.nii.gz")
    learner.label("brain1", (tmp_path / "final.nii.gz").read_bytes(), "f.nii.gz", label_info=NAMES)
    scores = learner.post("/scoring/agreement?run_sync=true", {})["brain1"]["dice"]
    assert scores["CSF"] == 0.0 and scores["grey matter"] == pytest.approx(2 / 3, abs=0.01)
    assert 0.5 < scores["white matter"] < 1
    learner.label("oblique", json.dumps({"question": QUESTION, "answer": "a T1 scanner"}).encode(), "a.json")
    model = json.dumps({"prompt": QUESTION, "text": "a T2 scanner"}).encode()
    learner.label("oblique", model, "b.json", "original")
    words = learner.post("/scoring/agreement?run_sync=true", {})["oblique"]
    assert words == {"token_f1": pytest.approx(2 / 3), "answers": 1}


def _until(said: str, server: Server, times: int = 1) -> None:
    end = time.monotonic() + 240
    while server.log.count(said) < times:
        assert time.monotonic() < end, server.log[-3000:]
        status = server.get("/train/").json()
        assert status["status"] != "ERROR", status
        time.sleep(0.3)


def _tasks(server: Server) -> list[Any]:
    """Processes for training that the server has started."""
    import psutil

    assert server.process is not None
    return psutil.Process(server.process.pid).children(recursive=True)


def test_it_learns_from_masks_and_words_and_survives_a_kill(learner: Server) -> None:
    shipped = bundle.digest("unimedvl_nano")
    assert "segment_own" not in learner.get("/info/").json()["models"]
    mask = learner.volume("segment_tissue", "brain0", slice="3")
    own = [{"name": "cortex", "idx": 1}, {"name": "inside", "idx": 2}]
    content = Path(mask.get_filename()).read_bytes()
    learner.label("brain0", content, "m.nii.gz", label_info=own)
    learner.label("brain1", content, "m.nii.gz", label_info=own)
    report = {"question": QUESTION, "answer": "a scanner"}
    for image in ("brain0", "oblique"):
        learner.label(image, json.dumps(report).encode(), "a.json", "words")
    learner.label("brain0", b"no json", "b.json", "more")

    settings = {"max_epochs": 2, "steps_per_epoch": 4, "slices": 2, "max_tokens": 600, "publish": "always"}
    scores = learner.post("/train/finetune?run_sync=true", settings)
    assert scores["published"] and scores["val_loss"] < scores["val_loss_before"]
    assert (scores["items"], scores["skipped"], scores["from"]) == (5, 1, shipped)
    told = learner.get("/info/").json()
    assert told["weights"] == scores["weights"] != shipped
    assert told["train_stats"]["finetune"]["val_loss"] == scores["val_loss"]
    assert told["models"]["segment_own"]["labels"]["cortex"] == 1, "a task for the labels that were taught"
    after = learner.infer("answer", "brain1", question=QUESTION)
    assert after["weights"] == scores["weights"]
    assert learner.infer("segment_own", "brain1", "json", slice="3")["prompt"].startswith("Segment the ")
    bad = learner.ask("POST", "/train/finetune?run_sync=true", json={"lr": "fast"})
    assert bad.status_code == 400 and "lr is 'fast'" in bad.json()["detail"]

    learner.post("/train/finetune", {**settings, "max_epochs": 1000})  # in a process of its own
    _until("epoch 0: validation loss", learner, times=2)  # the first was the run before
    (task,) = _tasks(learner)
    learner.kill()
    task.wait(30)  # it ends by itself, though nobody has told it
    learner.start()
    restarted = learner.get("/info/").json()
    assert restarted["weights"] == scores["weights"], "the model of before goes on serving"
    same = learner.infer("answer", "brain1", question=QUESTION)
    assert (same["answer"], same["logprob"]) == (after["answer"], after["logprob"])


def test_a_task_whose_server_dies_while_it_starts_ends_too(installed: None) -> None:
    """The server is gone before the process has imported anything: its number is that of nobody's parent."""
    words = [sys.executable, "-m", "monai_unimedvl.label.task", "-m", "train"]
    environment = {**os.environ, PARENT: "999999", "PYTHONPATH": ""}
    done = subprocess.run(words, env=environment, timeout=240, capture_output=True)
    assert done.returncode == 1 and b"Traceback" not in done.stderr, done.stderr[-2000:]
