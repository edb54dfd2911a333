# SPDX-License-Identifier: Apache-2.0
"""A folder of one's own data in its three layouts, and everything that may be wrong with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch
from PIL import Image

from monai_unimedvl.data.own import ReadOwn, list_own, own_mixture, own_packs
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.sequence import Canvas, Turn, View
from monai_unimedvl.tokenizer import Tokenizer


def draw(path: Path, value: int = 90, size: tuple[int, int] = (24, 20)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full(size, value, np.uint8)).save(path)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    folder = tmp_path / "vqa"
    lines = ["image,question,answer,patient"]
    for n in range(5):
        draw(folder / "scans" / f"{n}.png", 40 * n)
        lines += [f"scans/{n}.png,Which plane?,axial,p{n}", f'scans/{n}.png,"Is it, say, bright?",no,p{n}']
    (folder / "questions.csv").write_text("\n".join(lines), "utf8")
    return folder


@pytest.fixture
def masks(tmp_path: Path) -> Path:
    folder = tmp_path / "masks"
    for n in range(4):
        draw(folder / "images" / f"{n}.jpg")
        draw(folder / "masks" / f"{n}.png", 255 * (n % 2))
    (folder / "labels.json").write_text('{"nuclei": 255}')
    return folder


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    folder = tmp_path / "pairs"
    for name, value in (("source", 30), ("target", 200)):
        (folder / name).mkdir(parents=True)
        for n in range(2):
            values = np.full((12, 14, 5), value, np.float32)
            values[3:9, 4:10] *= 2
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), folder / name / f"case{n}.nii.gz")
    (folder / "instruction.txt").write_text("Turn this T1 MRI into T2.\n")
    return folder


def test_questions_and_answers_of_a_table(table: Path) -> None:
    items = list_own(table)
    assert len(items) == 10 and {item["kind"] for item in items} == {"answer"}
    user, assistant = ReadOwn("histopathology")(items[3])["turns"]
    assert user.parts[0].shape == (3, 24, 24) and user.parts[1] == "Is it, say, bright?"
    assert assistant.parts == ["no"]


def test_the_same_patients_are_held_out_whoever_asks(table: Path) -> None:
    train, val = ({item["patient"] for item in list_own(table, section)} for section in ("train", "val"))
    assert len(val) == 1 and len(train) == 4 and not train & val
    assert {item["patient"] for item in list_own(table, "val", holdout=0.5)} > val
    rows = (table / "questions.csv").read_text("utf8").replace("patient", "section")
    rows = re.sub(",p[0-3]", ",train", rows.replace(",p4", ",val"))
    (table / "questions.csv").write_text(rows)
    assert {Path(item["image"]).stem for item in list_own(table, "val")} == {"4"}


def test_masks_are_drawn_in_the_colours_that_the_network_knows(masks: Path) -> None:
    items = list_own(masks)
    assert items[0]["words"] == "Segment the nuclei."
    empty, full = (ReadOwn("histopathology")(item) for item in items[:2])
    drawn = full["turns"][1].parts[0]
    assert full["mask"].unique().tolist() == [0, 1] and not empty["mask"].any()
    assert torch.equal((drawn[:, 12, 12] * 255).round(), torch.tensor([80.0, 220.0, 255.0]))
    assert list_own(masks, instruction="Find them.")[0]["words"] == "Find them."
    (masks / "labels.json").write_text('{"left lung": 1, "heart": 2}')
    item = list_own(masks)[0]
    assert (
        item["words"] == "Segment the left lung and heart."
        and len({*map(tuple, item["legend"].values())}) == 2
    )


def test_volumes_pair_slice_by_slice(pairs: Path) -> None:
    items = list_own(pairs, slices=3)
    assert [item["slice"] for item in items[:3]] == [(0, 3), (1, 3), (2, 3)]
    user, assistant = ReadOwn("mri")(items[1])["turns"]
    assert user.parts[0].shape == assistant.parts[0].shape and user.parts[1] == "Turn this T1 MRI into T2."
    assert {Path(item["image"]).name for item in list_own(pairs, "val")} != set()
    with pytest.raises(ValueError, match=r"case0.nii.gz: SelectSlices\(count=9\) needs 9 slices, got 5"):
        ReadOwn("mri")(list_own(pairs, slices=9)[0])


def test_packs_hold_every_item_and_only_training_changes_it(table: Path, masks: Path) -> None:
    tokenizer = Tokenizer.train(["Which plane? axial"] * 4, 270)
    network = nano(PatchCodec(8, 12), vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    read = [ReadOwn("histopathology")(item) for item in [*list_own(table), *list_own(masks)]]
    packs = own_packs(read, network, tokenizer, budget=600)
    assert sum(len(pack.samples) for pack in packs) == len(read) and all(pack.tokens <= 600 for pack in packs)
    drawn = packs[-1].samples[-1]
    assert [type(part) for part in drawn if isinstance(part, Canvas | View)] == [Canvas, View, Canvas]
    assert drawn[-1].noisy and not drawn[0].noisy
    again = own_packs(read, network, tokenizer, budget=600)
    assert torch.equal(again[-1].samples[-1][1].patches, drawn[1].patches)
    pack = own_mixture(read, network, tokenizer, budget=3000).next_pack()
    assert {origin.split("/")[0] for origin in pack.origins} == {"answer", "mask"} and not pack.rejects


@pytest.mark.parametrize(
    "break_it, message",
    [
        (
            lambda f: (f / "questions.csv").unlink(),
            "vqa has none of the known layouts, expected questions.csv",
        ),
        (
            lambda f: (f / "questions.csv").write_text("a,b\n1,2\n"),
            "questions.csv has columns a, b, expected image",
        ),
        (
            lambda f: (f / "questions.csv").write_text("image,question,answer\nscans/0.png,Which?,\n"),
            "line 2 does not say both what is asked and what is true",
        ),
        (
            lambda f: (f / "questions.csv").write_text("image,question,answer\n../x.png,Which?,y\n"),
            "line 2 names '../x.png', which is outside the folder",
        ),
        (
            lambda f: (f / "questions.csv").write_text("image,question,answer\nx.png,Which?,y\n"),
            "line 2 names 'x.png', which is not in vqa",
        ),
        (
            lambda f: (f / "questions.csv").write_text(
                "image,question,answer,section\nscans/0.png,W?,y,tst\n"
            ),
            "line 2 has section 'tst', expected train or val",
        ),
    ],
)
def test_what_is_wrong_with_a_table_is_said_with_its_line(table: Path, break_it, message: str) -> None:
    break_it(table)
    with pytest.raises(ValueError, match=message):
        list_own(table)


def test_what_is_wrong_with_a_folder_is_said(masks: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="dataset_dir is not given, expected a folder"):
        list_own(None)
    with pytest.raises(ValueError, match="nowhere', expected a folder with questions.csv.*check the path"):
        list_own(tmp_path / "nowhere")
    for content in ("", json.dumps({"a": 0}), json.dumps(["a"])):
        (masks / "labels.json").write_text(content)
        with pytest.raises(ValueError, match="masks/labels.json is missing or no list of labels"):
            list_own(masks)
    (masks / "labels.json").write_text('{"nuclei": 255}')
    (masks / "masks" / "3.png").rename(masks / "masks" / "4.png")
    with pytest.raises(ValueError, match="do not pair, '3' is in one of them only"):
        list_own(masks)
    (pairs / "instruction.txt").unlink()
    with pytest.raises(ValueError, match="pairs/instruction.txt is missing or empty"):
        list_own(pairs)
    with pytest.raises(ValueError, match="no item in section 'val' of 6"):
        list_own(pairs, "val", instruction="Turn it.", slices=3, holdout=0.0)


@pytest.mark.parametrize(
    "kind, item, moves",
    [
        ("answer", {"words": "Which plane?", "answer": "axial"}, True),
        ("answer", {"words": "On which side?", "answer": "left"}, True),  # moved, never mirrored
        ("answer", {"words": "Where?", "answer": "<box>(1,2),(3,4)</box>"}, False),
        ("mask", {"words": "Segment the lungs.", "legend": {"nodule": (255, 0, 0)}}, True),
        ("mask", {"words": "Segment the L5 vertebra.", "legend": {"L5": (255, 0, 0)}}, True),
        ("mask", {"words": "Segment the lungs.", "legend": {"left lung": (255, 0, 0)}}, False),
        ("mask", {"words": "Segment the Parotid_L.", "legend": {"Parotid_L": (255, 0, 0)}}, False),
        ("pair", {"words": "Zeige rechts mehr."}, False),
    ],
)
def test_what_is_said_of_a_place_stays_true_of_the_picture(kind: str, item: dict, moves: bool) -> None:
    image = torch.rand(3, 64, 64)
    told = item["answer"] if kind == "answer" else image
    turns = [Turn("user", [image, item["words"]]), Turn("assistant", [told])]
    mixture = own_mixture([{**item, "kind": kind, "turns": turns}], *tiny_nano())
    looks = [mixture.streams[0].read(0, torch.Generator().manual_seed(seed))[0].parts[0] for seed in range(6)]
    assert all(torch.equal(look, image) for look in looks) != moves


def test_names_with_dots_stay_apart(tmp_path: Path) -> None:
    for n in (1, 2, 3):
        draw(tmp_path / "images" / f"1.2.840.{n}.png")
        draw(tmp_path / "masks" / f"1.2.840.{n}.png", 255)
    (tmp_path / "labels.json").write_text('{"nuclei": 255}')
    items = list_own(tmp_path)
    assert [Path(item["image"]).name for item in items] == [Path(item["target"]).name for item in items]
    assert len(items) == 3 and {item["section"] for item in items} == {"train", "val"}


def tiny_nano():
    """An untrained network and its tokenizer."""
    tokenizer = Tokenizer.train(["Segment the lungs."], 300)
    return nano(PatchCodec(8, 4), vocab_size=len(tokenizer), hidden_size=64, num_layers=1), tokenizer
