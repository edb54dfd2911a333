# SPDX-License-Identifier: Apache-2.0
"""A real MONAI Label server, asked by its own client and by plain HTTP: every task, geometry, crowds."""

from __future__ import annotations

import json
import math
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from label_server import NAME, Server
from PIL import Image

from monai_unimedvl import bundle
from monai_unimedvl.provenance import read_mark

pytestmark = pytest.mark.label
TISSUES = {"grey matter": 1, "white matter": 2, "CSF": 3}
OWN = {"grey matter": 3, "white matter": 5, "CSF": 700}  # as `server` is set up


def test_info_shows_every_task_with_its_settings(server: Server) -> None:
    told = server.get("/info/").json()
    tasks = {"answer", "report", "region", "translate", "draw", "segment_tissue", "segment_lobes"}
    assert tasks <= set(told["models"]) and "finetune" in told["trainers"]
    assert {"uncertainty", "random", "first"} == set(told["strategies"]) and "agreement" in told["scoring"]
    assert told["models"]["segment_tissue"]["labels"] == TISSUES
    assert told["models"]["segment_tissue"]["type"] == "segmentation"
    settings = told["models"]["answer"]["config"]
    assert settings["question"] == "Which plane is this?" and settings["temperature"] == 0.0
    assert settings["modality"][0] == "auto" and "ct" in settings["modality"]
    assert told["weights"] == bundle.digest("unimedvl_nano")


def test_nobody_comes_in_without_the_key(server: Server) -> None:
    import requests

    for headers in ({}, {"X-API-Key": "wrong"}, {"Authorization": f"Basic {server.key}"}):
        answer = requests.get(server.url + "/info/", headers=headers, timeout=60)
        assert answer.status_code == 401 and "X-API-Key" in answer.json()["detail"]
    elsewhere = {"X-API-Key": server.key, "Origin": "https://elsewhere.example"}
    told = requests.get(server.url + "/info/", headers=elsewhere, timeout=60).headers
    assert "access-control-allow-origin" not in told, "no page of another origin may read it"
    bearer = {"Authorization": f"Bearer {server.key}"}
    assert requests.get(server.url + "/info/", headers=bearer, timeout=60).status_code == 200


def test_monai_labels_own_client_asks_segments_and_reads(
    server: Server, tmp_path: Path, sample: Path
) -> None:
    from monailabel.client import MONAILabelClient

    client = MONAILabelClient(server.url, str(tmp_path), client_id="test")
    client.update_auth({"token_type": "Bearer", "access_token": server.key})
    assert "answer" in client.info()["models"]
    file, said = client.infer("answer", "brain0", {"question": "Which contrast or stain is this?"})
    assert file is None and json.loads(said)["answer"] == "T1"
    file, told = client.infer("segment_tissue", "brain0", {"result_extension": ".nii.gz"})
    assert told["label_names"] == TISSUES and Path(file).is_file()
    fresh = MONAILabelClient(server.url, str(tmp_path))  # with a token the client keeps old headers
    fresh.update_auth({"token_type": "Bearer", "access_token": server.key})
    session = fresh.create_session(str(sample))["session_id"]
    file, said = MONAILabelClient.infer(client, "answer", "", {"modality": "mri"}, session_id=session)
    assert json.loads(said)["answer"] == "axial"


def test_an_answer_honours_what_the_request_sets(server: Server) -> None:
    plane = server.infer("answer", "brain0")
    assert plane["answer"] == "axial" and plane["read"][0].startswith("axial slice 4 of 0 to 7")
    assert plane["confidence"] == pytest.approx(math.exp(plane["logprob"] / 3), abs=0.3)
    contrast = server.infer("answer", "brain0", question="Which contrast or stain is this?", slice="2")
    assert contrast["answer"] == "T1" and contrast["read"][0].startswith("axial slice 2 ")
    sagittal = server.infer("answer", "brain0", plane="sagittal", modalty="ct")
    assert sagittal["read"][0].startswith("sagittal") and sagittal["ignored"] == ["modalty"]
    heated = {"temperature": 5.0, "question": "Describe this image.", "max_new_tokens": 8}
    one, again, other = (
        server.infer("answer", "brain0", **heated, seed=seed)["answer"] for seed in (1, 1, 2)
    )
    assert one == again != other
    short = server.infer("answer", "brain0", question="Describe this image.", max_new_tokens=2)
    assert short["stop_reason"] == "length"
    assert short["manifest"]["synthetic"] is True and short["weights"] == bundle.digest("unimedvl_nano")


def test_a_report_and_a_region(server: Server) -> None:
    report = server.infer("report", "picture")
    assert "T1" in report["answer"] and report["report"]["findings"]
    told = server.infer("report", "picture", history="Smoker.", prior_report="Unremarkable.")
    assert told["prompt"].startswith("History: Smoker.") and "Prior report: Unremarkable." in told["prompt"]
    question = {"question": "Is the thalamus visible?"}
    clicked = server.infer("region", "brain0", foreground=[[24, 28, 3]], **question)
    assert "<point>" in clicked["prompt"] and clicked["read"][0].startswith("axial slice 3 ")
    box = server.infer("region", "brain0", box="10,10,30,30", **question)
    assert "<box>" in box["prompt"] and box["answer"] in ("yes", "no")
    mm = server.infer("region", "brain0", box="0,-10,13mm", **question)
    assert "<point>" in mm["prompt"] and mm["read"][0].endswith("S +13.5 mm")


@pytest.mark.parametrize(
    "model, image, settings, said",
    [
        ("answer", "brain0", {"slice": "99"}, "'middle' or a number from 0 to 7"),
        ("answer", "brain0", {"plane": "axal"}, "did you mean 'axial'"),
        ("answer", "brain0", {"seed": "many"}, "seed is 'many', expected a whole number from 0"),
        ("answer", "brain0", {"question": " "}, "the question is empty"),
        ("answer", "nobody", {}, "names no image that is here"),
        ("answer", "/etc/hostname", {}, "image is a path of the server, expected an id"),
        ("region", "brain0", {}, "names a region twice or not at all"),
        ("region", "brain0", {"foreground": [[0, 0, 0], [0, 0, 5]]}, "in several slices"),
        ("region", "brain0", {"foreground": [[900, 0, 0]]}, "take one inside"),
        ("region", "picture", {"foreground": [[1, 1, 0]]}, "a flat picture"),
        ("segment_tissue", "brain0", {"slice": "x"}, "'all', 'middle' or a number"),
        ("segment_tissue", "brain0", {"result_extension": ".exe"}, "result_extension is '.exe'"),
        ("segment_tissue", "brain0", {"result_extension": ".png", "slice": "1"}, "a volume of 8 slices"),
        ("segment_own", "brain0", {"result_dtype": "uint8"}, "label 700 came for uint8, which holds"),
        ("segment_own", "picture", {}, "label 700 came for a picture, which holds 0 to 255"),
        ("translate", "brain0", {"image_guidance": 2}, "only with guidance above 1"),
        ("draw", "brain0", {"prompt": ""}, "the prompt is empty"),
        ("nothing", "brain0", {}, "no model 'nothing'"),
    ],
)
def test_what_does_not_fit_is_told_in_one_sentence(
    server: Server, model: str, image: str, settings: dict[str, Any], said: str
) -> None:
    where = {"params": json.dumps(settings)}
    answer = server.ask("POST", f"/infer/{model}", params={"image": image}, data=where)
    assert answer.status_code == 400 and said in answer.json()["detail"], answer.text
    assert "\n" not in answer.json()["detail"]


@pytest.mark.parametrize("image", ["brain0", "picture"])
def test_ones_own_labels_keep_the_numbers_that_they_were_taught_with(
    server: Server, tmp_path: Path, image: str
) -> None:
    told = server.infer("segment_own", image, "json", result_extension=".nii.gz")
    assert told["label_names"] == OWN and set(told.get("ml") or told["pixels"]) == set(OWN)
    usual, own = (
        np.asarray(server.volume(task, image, result_extension=".nii.gz").dataobj)
        for task in ("segment_tissue", "segment_own")
    )
    assert set(np.unique(usual)) == {0, 1, 2, 3} and own.dtype == np.int16
    assert (own == np.array([0, *OWN.values()])[usual]).all()


def test_ones_own_labels_have_their_names_and_numbers_in_the_file(server: Server, tmp_path: Path) -> None:
    import nrrd

    content = server.infer("segment_own", "brain0", "image", result_extension=".seg.nrrd").content
    (tmp_path / "own.seg.nrrd").write_bytes(content)
    values, header = nrrd.read(str(tmp_path / "own.seg.nrrd"))
    named = {header[f"Segment{n}_Name"]: int(header[f"Segment{n}_LabelValue"]) for n in range(3)}
    assert named == OWN and set(np.unique(values)) == {0, *OWN.values()}


@pytest.mark.parametrize("image", ["brain0", "oblique"])
def test_a_mask_lies_on_the_voxels_of_its_image(server: Server, studies: Path, image: str) -> None:
    source = nibabel.load(studies / f"{image}.nii.gz")
    mask = server.volume("segment_tissue", image)
    assert np.abs(mask.affine - source.affine).max() < 1e-5 and mask.shape == source.shape
    values = np.asarray(mask.dataobj)
    assert values.dtype == np.uint8 and set(np.unique(values)) == {0, 1, 2, 3}
    brain = np.asarray(source.dataobj) > 0
    assert (values[~brain] > 0).mean() < 0.05, "nothing is labelled where nothing is"
    grey = np.asarray(source.dataobj)
    assert grey[values == 2].mean() > 1.2 * grey[values == 1].mean(), "white matter is brighter on T1"
    assert read_mark(Path(mask.get_filename()))["synthetic"] is True


def test_names_and_colours_for_slicer(server: Server, studies: Path, tmp_path: Path) -> None:
    import nrrd

    for ending in (".nrrd", ".seg.nrrd"):
        asked = {"slice": "3", "result_extension": ending, "result_dtype": "uint16", "result_compress": True}
        content = server.infer("segment_tissue", "oblique", "image", **asked).content
        (tmp_path / f"mask{ending}").write_bytes(content)
    values, header = nrrd.read(str(tmp_path / "mask.seg.nrrd"))
    source = nibabel.load(studies / "oblique.nii.gz")
    place = np.diag([-1, -1, 1, 1]) @ source.affine
    assert np.abs(header["space directions"].T - place[:3, :3]).max() < 1e-5
    assert np.abs(header["space origin"] - place[:3, 3]).max() < 1e-4
    assert values.shape == source.shape and values.dtype == np.uint16
    assert {n for n in range(8) if values[:, :, n].any()} == {3}, "only the slice that was named"
    names = {header[f"Segment{n}_Name"]: int(header[f"Segment{n}_LabelValue"]) for n in range(3)}
    assert names == TISSUES
    colour = [round(float(c) * 255) for c in header["Segment0_Color"].split()]
    told = server.infer("segment_tissue", "oblique", "json", slice="3", uncertain=True)
    assert told["color_map"]["grey matter"] == colour == [220, 50, 50]
    assert told["label_names"] == {**TISSUES, "uncertain": 4} and told["ml"]["grey matter"] > 1
    assert json.loads(header["Provenance"])["synthetic"] is True
    plain, header = nrrd.read(str(tmp_path / "mask.nrrd"))
    assert (plain == values).all() and "Segment0_Name" not in header


def test_a_flat_picture_gives_a_flat_mask(server: Server, studies: Path, tmp_path: Path) -> None:
    (tmp_path / "mask.png").write_bytes(server.infer("segment_tissue", "picture", "image").content)
    mask = np.asarray(Image.open(tmp_path / "mask.png"))
    source = np.asarray(Image.open(studies / "picture.png").convert("L"))
    assert mask.shape == source.shape and set(np.unique(mask)) == {0, 1, 2, 3}
    assert source[mask == 2].mean() > source[mask == 1].mean()
    volume = server.volume("segment_tissue", "picture", result_extension=".nii.gz")
    assert (np.asarray(volume.dataobj)[..., 0].T == mask).all()


def test_a_translation_keeps_type_unit_and_place(server: Server, studies: Path) -> None:
    source = nibabel.load(studies / "oblique.nii.gz")
    made = server.volume("translate", "oblique", task="t1-to-t2")
    assert made.shape == source.shape and np.abs(made.affine - source.affine).max() < 1e-5
    assert np.asarray(made.dataobj).dtype == np.int16 and np.asarray(made.dataobj).max() > 300
    same = server.volume("translate", "oblique", instruction="Turn this T1 MRI into T2.")
    assert (np.asarray(same.dataobj) == np.asarray(made.dataobj)).all(), "the words of that task"
    other = server.infer("translate", "picture", "json", task="sr4")
    assert other["prompt"] == "Sharpen this image four times."


def test_a_drawing_follows_its_words_and_seed(server: Server, studies: Path, tmp_path: Path) -> None:
    def draw(**settings: Any) -> np.ndarray:
        (tmp_path / "drawn.png").write_bytes(server.infer("draw", "brain0", "image", **settings).content)
        return np.asarray(Image.open(tmp_path / "drawn.png")).astype(int)

    few = {"steps": 4}
    first, again, other = (draw(seed=seed, **few) for seed in (1, 1, 2))
    assert first.shape == (64, 64, 3) and (first == again).all() and (first != other).any()
    assert read_mark(tmp_path / "drawn.png")["seed"] == 2
    placed = server.volume("draw", "brain0", seed=1, slice="3", result_extension=".nii.gz", **few)
    source = nibabel.load(studies / "brain0.nii.gz")
    assert placed.shape[2] == 1
    corner = placed.affine @ [0, 0, 0, 1]
    assert abs(corner[2] - (source.affine @ [0, 0, 3, 1])[2]) < 1e-4, "on the slice that was named"


def test_fifty_at_once_are_not_mixed_up(server: Server) -> None:
    questions = ("Which plane is this?", "Which contrast or stain is this?", "Is the thalamus visible?")
    first = {"axial": 1, "sagittal": 20, "coronal": 25}
    wanted = [
        ("answer", image, {"question": question, "slice": str(first[plane] + n % 5), "plane": plane})
        for n, (image, question, plane) in enumerate(
            (image, question, plane)
            for image in ("brain0", "brain1", "oblique")
            for question in questions
            for plane in ("axial", "sagittal", "coronal")
        )
    ]
    wanted = (wanted * 2)[:50]

    def ask(one: tuple[str, str, dict[str, Any]]) -> tuple[Any, ...]:
        told = server.infer(one[0], one[1], **one[2])
        return told["prompt"], told["answer"], round(told["logprob"], 5), tuple(told["read"])

    alone = {json.dumps(one): ask(one) for one in wanted}
    assert len(set(alone.values())) > 15, "they differ"
    with ThreadPoolExecutor(50) as crowd:
        together = list(crowd.map(ask, wanted))
    assert together == [alone[json.dumps(one)] for one in wanted]


def test_the_log_names_no_patient_and_shows_progress(server: Server) -> None:
    server.infer("segment_tissue", NAME, "json")
    server.infer("answer", NAME, question=f"Is {NAME} well?")
    assert NAME not in server.log and "Is " + NAME not in server.log
    assert "segment_tissue: answered in" in server.log and "drew 8 of at most 8 slices" in server.log
