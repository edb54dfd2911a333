# SPDX-License-Identifier: Apache-2.0
"""Masks, pairs and COCO files as records with facts that hold on the record's own pixels."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pydicom
import pytest
from PIL import Image
from pydicom.data import get_testdata_file
from sources import block, ingested, nifti, png

from monai_unimedvl.data.dialogue import pixels
from monai_unimedvl.data.facts import boxes_of
from monai_unimedvl.data.ingest.coco import IngestCoco, draw
from monai_unimedvl.data.ingest.masks import IngestMasks
from monai_unimedvl.data.ingest.pairs import IngestPairs
from monai_unimedvl.data.ingest.regions import facts_of, side_of
from monai_unimedvl.data.record import InvalidRecord, Record, Reject
from monai_unimedvl.data.step import Tally
from monai_unimedvl.packages import MissingPackage


def run(kind: Any, tmp_path: Path, **options: Any) -> tuple[list[Record], list[Reject], Tally]:
    given = {"path": str(tmp_path / "in"), "root": str(tmp_path / "out"), "dataset": "d", "modality": "mri"}
    return ingested(kind(**{**given, "public": True, **options}))


def measured(record: Record, name: str, of: str = "") -> float:
    return next(
        m["value"] for m in record.facts["measurements"] if m["name"] == name and m.get("of", "") == of
    )


# masks


def masked(tmp_path: Path) -> None:
    labels = np.zeros((30, 40, 20), np.uint8)
    labels[8:12, 10:20, 4:8] = 2  # patient's left: x grows to the right in RAS
    nifti(tmp_path / "in" / "images" / "a.nii.gz")
    nifti(tmp_path / "in" / "masks" / "a.nii.gz", labels)
    (tmp_path / "in" / "labels.json").write_text('{"liver": 1, "tumour": 2}')


def test_a_missing_package_stops_the_run_and_rejects_no_file(tmp_path: Path, monkeypatch: Any) -> None:
    masked(tmp_path)
    monkeypatch.setitem(sys.modules, "skimage.measure", None)  # as if it were not installed
    with pytest.raises(MissingPackage, match="A mask needs skimage.*pip install"):
        run(IngestMasks, tmp_path)


def test_a_mask_lies_on_the_pixels_of_its_slice_and_is_measured_in_mm(tmp_path: Path) -> None:
    masked(tmp_path)
    records, rejects, tally = run(IngestMasks, tmp_path, containing="label")
    assert not rejects and len(records) == 4 and tally.taken == 1
    first = records[0]
    facts = first.facts
    assert facts["labels"] == ["tumour"] and facts["absent"] == ["liver"]
    assert measured(first, "area", "tumour") == 40 * 25 and measured(first, "count", "tumour") == 1
    assert 50 <= measured(first, "diameter", "tumour") <= 56  # 10 x 4 pixels of 5 mm
    with Image.open(tmp_path / "out" / facts["mask"]["path"]) as mask:
        pixels = np.array(mask)
    assert set(np.unique(pixels)) == {0, 2} and (pixels == 2).sum() == 40
    (box,) = boxes_of(facts)
    rows, columns = np.nonzero(pixels)
    assert (box.left, box.top, box.right, box.bottom) == (
        columns.min(), rows.min(), columns.max() + 1, rows.max() + 1,
    )  # fmt: skip
    assert sorted(record.input_img[0].place["index"] for record in records) == [4, 5, 6, 7]


def test_slices_of_any_kind_say_what_is_absent(tmp_path: Path) -> None:
    masked(tmp_path)
    records, _, _ = run(IngestMasks, tmp_path, slices=10)
    assert len(records) == 10
    assert {tuple(record.facts.get("labels", ())) for record in records} == {("tumour",), ()}
    assert all("liver" in record.facts["absent"] for record in records)


def test_instances_are_counted_one_by_one(tmp_path: Path) -> None:
    png(tmp_path / "in" / "images" / "a.png", size=(64, 64))
    pieces = np.zeros((64, 64), np.uint16)
    for number in range(300):  # 16-bit numbers, touching pieces of 3 x 3
        row, column = divmod(number, 20)
        pieces[3 * row : 3 * row + 3, 3 * column : 3 * column + 3] = number + 1
    (tmp_path / "in" / "masks").mkdir()
    Image.fromarray(pieces).save(tmp_path / "in" / "masks" / "a.png")
    (tmp_path / "in" / "labels.json").write_text('{"nuclei": "instances"}')
    records, rejects, _ = run(IngestMasks, tmp_path, modality="histopathology")
    assert not rejects and measured(records[0], "count", "nuclei") == 300
    assert len(records[0].facts["boxes"]) == 64


def test_a_mask_of_another_size_and_one_alone_are_rejects(tmp_path: Path) -> None:
    masked(tmp_path)
    nifti(tmp_path / "in" / "images" / "b.nii.gz")
    nifti(tmp_path / "in" / "masks" / "c.nii.gz")
    png(tmp_path / "in" / "images" / "flat.png", size=(40, 48))
    png(tmp_path / "in" / "masks" / "flat.png", size=(48, 40))
    records, rejects, tally = run(IngestMasks, tmp_path, slices=2)
    assert sorted(reject.code for reject in rejects) == ["geometry-differs", "unpaired", "unpaired"]
    assert "48 x 40 pixels, its image 40 x 48" in " ".join(reject.reason for reject in rejects)
    assert (tally.taken, tally.kept) == (4, 1)


@pytest.mark.parametrize(
    "labels", ["", "[]", '{"a": 0}', '{"a": 1, "b": 1}', '{"a": "instances", "b": 2}', '{"a": true}']
)
def test_labels_that_say_nothing_are_one_sentence(tmp_path: Path, labels: str) -> None:
    masked(tmp_path)
    (tmp_path / "in" / "labels.json").write_text(labels)
    with pytest.raises(ValueError, match="labels.json (is no list|is missing|gives one value)"):
        run(IngestMasks, tmp_path)


def test_a_side_is_the_patients() -> None:
    mask = np.zeros((20, 20), bool)
    mask[5:9, 2:6] = True
    assert side_of(mask, "right") == "right" and side_of(mask, "left") == "left" and side_of(mask, "") == ""
    mask[5:9, 14:18] = True
    assert side_of(mask, "right") == "both"
    assert facts_of(np.zeros((9, 9)), ["a"]) == {"absent": ["a"]}


# pairs


def test_pairs_give_both_directions_on_the_same_pixels(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "T1" / "a.nii")
    nifti(tmp_path / "in" / "T2" / "a.nii", block() * -1 + 100)
    nifti(tmp_path / "in" / "T1" / "b.nii")
    records, rejects, tally = run(IngestPairs, tmp_path, slices=2, names=("T1 MRI", "T2 MRI"))
    assert len(records) == 4 and [reject.code for reject in rejects] == ["unpaired"] and tally.taken == 2
    assert {(r.facts["pair"]["from"], r.facts["pair"]["to"]) for r in records} == {
        ("T1 MRI", "T2 MRI"), ("T2 MRI", "T1 MRI"),
    }  # fmt: skip
    there, back = records[0], records[2]
    assert len({record.patient for record in records}) == 1, "a case is of one patient, either way round"
    assert there.input_img[0].path == back.output_img[0].path and there.kind == "interleaved"
    assert there.input_img[0].place["position_mm"] == back.input_img[0].place["position_mm"]
    assert len(run(IngestPairs, tmp_path, slices=2, one_way=True)[0]) == 2


def test_a_pair_whose_slices_lie_apart_is_refused_with_the_numbers(tmp_path: Path) -> None:
    far = np.diag([5.0, 5, 5, 1])
    far[2, 3] = 500
    nifti(tmp_path / "in" / "T1" / "a.nii")
    nifti(tmp_path / "in" / "T2" / "a.nii", affine=far)
    png(tmp_path / "in" / "T1" / "b.png", size=(40, 40))
    png(tmp_path / "in" / "T2" / "b.png", size=(48, 40))
    records, rejects, _ = run(IngestPairs, tmp_path, slices=1)
    assert not records and [reject.code for reject in rejects] == ["geometry-differs"] * 4, "both ways"
    assert "mm away from its image" in rejects[0].reason and "40 x 40" in rejects[2].reason


@pytest.mark.parametrize("plane", ["axial", "coronal", "sagittal"])
def test_of_stacks_that_begin_apart_the_slices_of_one_place_meet(tmp_path: Path, plane: str) -> None:
    values, moved = block(), np.diag([5.0, 5, 5, 1])
    moved[:3, 3] = 5
    nifti(tmp_path / "in" / "T1" / "a.nii", values)
    nifti(tmp_path / "in" / "T2" / "a.nii", values[1:, 1:, 1:], affine=moved)
    records, _, _ = run(IngestPairs, tmp_path, policy="all", plane=plane, one_way=True)
    axis = ["sagittal", "coronal", "axial"].index(plane)
    assert len(records) == values.shape[axis] - 1, "each but the first, which the second stack has not"


def test_slices_without_a_partner_in_a_thicker_stack_are_rejects_and_the_others_stay(tmp_path: Path) -> None:
    values, thick = block(), np.diag([5.0, 5, 10, 1])
    nifti(tmp_path / "in" / "T1" / "a.nii", values)
    nifti(tmp_path / "in" / "T2" / "a.nii", values[..., ::2], affine=thick)
    records, rejects, _ = run(IngestPairs, tmp_path, policy="all", one_way=True)
    whole = values.shape[2]
    assert len(records) == len(range(0, whole, 2)) and len(rejects) == whole - len(records)
    assert {reject.code for reject in rejects} == {"geometry-differs"}
    assert "picture 2" in rejects[0].place and "5.0 mm away" in rejects[0].reason


def test_pairs_need_two_folders_and_recipes(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "T1" / "a.nii")
    with pytest.raises(ValueError, match="has 1 folders, expected two"):
        run(IngestPairs, tmp_path)
    (tmp_path / "in" / "T2").mkdir()
    with pytest.raises(ValueError, match="has no folder 'T3'"):
        run(IngestPairs, tmp_path, folders=("T1", "T3"))
    with pytest.raises(ValueError, match="names are 1 for 2 folders"):
        run(IngestPairs, tmp_path, names=("x",))


# COCO


def coco(tmp_path: Path, annotations: list[dict[str, Any]], **entry: Any) -> str:
    png(tmp_path / "in" / "a.png", size=(40, 48))
    content = {
        "images": [{"id": 7, "file_name": "a.png", "height": 40, "width": 48, **entry}],
        "categories": [{"id": 3, "name": "polyp"}, {"id": 9, "name": "tool"}],
        "annotations": [{"image_id": 7, **each} for each in annotations],
    }
    (tmp_path / "in" / "coco.json").write_text(json.dumps(content))
    return str(tmp_path / "in" / "coco.json")


def test_boxes_and_polygons_become_facts(tmp_path: Path) -> None:
    square = [[10, 5, 20, 5, 20, 15, 10, 15]]
    path = coco(tmp_path, [{"category_id": 3, "bbox": [10, 5, 10, 10], "segmentation": square},
                           {"category_id": 3, "bbox": [30, 20, 8, 4]}])  # fmt: skip
    records, rejects, _ = run(IngestCoco, tmp_path, path=path, modality="fundus")
    assert not rejects
    facts = records[0].facts
    assert (
        facts["labels"] == ["polyp"]
        and facts["absent"] == ["tool"]
        and measured(records[0], "count", "polyp") == 2
    )
    assert [box.label for box in boxes_of(facts)] == ["polyp", "polyp"]
    assert facts["boxes"][0]["box"] == [10, 5, 20, 15]
    assert "mask" not in facts, "it would lack the polyp that is a box alone"
    path = coco(tmp_path / "b", [{"category_id": 3, "bbox": [10, 5, 10, 10], "segmentation": square}])
    facts = run(IngestCoco, tmp_path / "b", path=path, modality="fundus")[0][0].facts
    with Image.open(tmp_path / "b" / "out" / facts["mask"]["path"]) as mask:
        assert (np.array(mask) == 1).sum() == 100 and np.array(mask)[5:15, 10:20].all()


@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_regions_on_a_picture_that_exif_turns_are_refused(orientation: int, tmp_path: Path) -> None:
    path = coco(tmp_path, [{"category_id": 3, "bbox": [10, 5, 10, 10]}])
    (file,) = (tmp_path / "in").glob("*.png")
    picture, exif = Image.open(file).convert("RGB"), Image.Exif()
    exif[274] = orientation
    picture.save(file, exif=exif)
    records, rejects, _ = run(IngestCoco, tmp_path, path=path, modality="fundus")
    assert len(records) == (orientation == 1)
    assert all(one.code == "geometry-differs" and "EXIF" in one.reason for one in rejects)


@pytest.mark.parametrize("shift", [0.0, 0.5, 0.25, -3.0, 37.3])
def test_an_outline_holds_the_pixels_whose_centres_it_holds(shift: float) -> None:
    def drawn(*points: tuple[float, float]) -> np.ndarray:
        return draw([[number + shift for point in points for number in point]], (60, 64))

    whole = drawn((10, 5), (20, 5), (20, 12), (10, 12))
    assert whole.sum() == 70 and drawn((-90, -90), (-90, 200), (200, 200), (200, -90)).all()
    first, second = drawn((10, 5), (20, 5), (10, 12)), drawn((20, 5), (20, 12), (10, 12))
    assert np.array_equal(first ^ second, whole) and not (first & second).any()  # neighbours share no pixel
    assert abs(int(first.sum()) - 35) <= (10 + 7) / 2  # whose centres lie on its left and upper sides
    assert drawn((3, 3), (3.2, 3), (3.2, 3.2)).sum() <= 1 and not drawn((3, 3), (9, 3), (20, 3)).any()


def test_outlines_are_joined_and_may_lead_around_a_hole() -> None:
    ring = [0, 0, 9, 0, 9, 9, 0, 9, 0, 0, 3, 3, 3, 6, 6, 6, 6, 3, 3, 3]
    assert draw([ring], (10, 10)).sum() == 81 - 9 and not draw([ring], (10, 10))[3:6, 3:6].any()
    two = draw([[0, 0, 6, 0, 6, 6, 0, 6], [4, 4, 8, 4, 8, 8, 4, 8]], (10, 10))
    assert two.sum() == 36 + 16 - 4
    asked = pytest.importorskip("skimage.draw", reason="outlines are held against skimage's")
    generator = np.random.default_rng(0)
    for _ in range(50):  # also such as cross themselves or leave the image
        points = generator.uniform(-5, 35, (generator.integers(3, 12), 2))
        there = asked.polygon2mask((28, 31), points[:, ::-1] - 0.5)
        assert np.array_equal(draw([points.ravel().tolist()], (28, 31)), there)


def test_run_lengths_are_read_as_numbers_and_as_text() -> None:
    mask = np.zeros((4, 5), bool)
    mask[1:3, 2] = True
    counts = [9, 2, 9]
    assert np.array_equal(draw({"size": [4, 5], "counts": counts}, (4, 5)), mask)
    assert np.array_equal(draw({"size": [4, 5], "counts": "929"}, (4, 5)), mask)
    long = [100, 3, 60, 3, 234]  # differences from the third number on
    flat = np.repeat([0, 1, 0, 1, 0], long).reshape(20, 20).T.astype(bool)
    text = "".join(map(chr, [48 + (100 & 31) + 32, 48 + 3, 51, 48 + (60 & 31) + 32, 48 + 1]))
    with pytest.raises(InvalidRecord, match="run lengths"):
        draw({"size": [20, 20], "counts": text}, (20, 20))
    assert np.array_equal(draw({"size": [20, 20], "counts": long}, (20, 20)), flat)


@pytest.mark.parametrize(
    "annotation, entry, code",
    [
        ({"category_id": 5, "bbox": [1, 1, 2, 2]}, {}, "bad-label"),
        ({"category_id": 3, "bbox": [40, 1, 20, 2]}, {}, "bad-label"),
        ({"category_id": 3, "bbox": [1, 1, 0, 2]}, {}, "bad-label"),
        ({"category_id": 3, "bbox": "1 1 2 2"}, {}, "bad-label"),
        ({"category_id": 3, "segmentation": [[1, 2, 3]]}, {}, "bad-label"),
        ({"category_id": 3, "segmentation": [[1, 2, 3, 4, 5, float("inf")]]}, {}, "bad-label"),
        ({"category_id": 3, "segmentation": {"size": [1, 1], "counts": [1]}}, {}, "bad-label"),
        ({"category_id": 3, "bbox": [1, 1, 2, 2]}, {"height": 41}, "geometry-differs"),
        ({"category_id": 3, "bbox": [1, 1, 2, 2]}, {"file_name": "b.png"}, "image-missing"),
        ({"category_id": 3, "bbox": [1, 1, 2, 2]}, {"file_name": "/etc/passwd"}, "path-outside"),
    ],
)
def test_an_annotation_that_does_not_fit_is_a_reject(tmp_path: Path, annotation, entry, code) -> None:
    path = coco(tmp_path, [annotation], **entry)
    records, rejects, _ = run(IngestCoco, tmp_path, path=path, modality="fundus")
    assert not records and [reject.code for reject in rejects] == [code]


@pytest.mark.parametrize("along", [[-1, 0, 0, 0, 1, 0], [0, 1, 0, 1, 0, 0], [0, 1, 0, -1, 0, 0], ["R", "F"]])
def test_coco_regions_of_a_dicom_turn_with_its_picture(along: list[Any], tmp_path: Path) -> None:
    header = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    values = np.random.default_rng(0).integers(50, 300, (40, 64)).astype(np.int16)
    values[5:15, 40:60] = 1000
    header.Rows, header.PixelData = 40, values.tobytes()
    del header.WindowCenter, header.WindowWidth
    if along[0] == "R":  # a radiograph without a place
        del header.ImageOrientationPatient, header.ImagePositionPatient
        header.PatientOrientation = along
    else:
        header.ImageOrientationPatient = along
    header.save_as(tmp_path / "a.dcm")
    outline = {"bbox": [40, 5, 20, 10], "segmentation": [[40, 5, 60, 5, 60, 15, 40, 15]]}
    content = {
        "images": [{"id": 1, "file_name": "a.dcm", "height": 40, "width": 64}],
        "categories": [{"id": 1, "name": "node"}],
        "annotations": [{"image_id": 1, "category_id": 1, **outline}],
    }
    (tmp_path / "in.json").write_text(json.dumps(content))
    (record,), rejects, _ = run(IngestCoco, tmp_path, path=str(tmp_path / "in.json"))
    assert not rejects
    bright = pixels(record.input_img[0], tmp_path / "out").mean(0).numpy() > 0.7
    with Image.open(tmp_path / "out" / record.facts["mask"]["path"]) as mask:
        assert ((np.array(mask) == 1) == bright).all() and bright.sum() == 200
    (box,) = boxes_of(record.facts)
    rows, columns = np.nonzero(bright)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert (box.left, box.top, box.right, box.bottom) == edges


def test_a_later_outline_takes_nothing_from_an_earlier_one() -> None:
    square, corner = [0, 0, 2, 0, 2, 2, 0, 2], [0, 8, 8, 0, 8, 8]
    joined = draw([square, corner], (8, 8))
    assert joined[:2, :2].all() and joined[7, 7] and not joined[2, 2]
