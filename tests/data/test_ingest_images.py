# SPDX-License-Identifier: Apache-2.0
"""NIfTI folders and folders of classes as records."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from sources import block, ingested, nifti, png

from monai_unimedvl.data.ingest.images import IngestImages
from monai_unimedvl.data.ingest.nifti import IngestNifti
from monai_unimedvl.data.ingest.words import without_names


def volumes(tmp_path: Path, **options: object) -> IngestNifti:
    given = {"path": str(tmp_path / "in"), "root": str(tmp_path / "out"), "dataset": "d", "modality": "mri"}
    return IngestNifti(**{**given, "public": True, **options})


def pictures(tmp_path: Path, **options: object) -> IngestImages:
    given = {
        "path": str(tmp_path / "in"),
        "root": str(tmp_path / "out"),
        "dataset": "d",
        "modality": "fundus",
    }
    return IngestImages(**{**given, "public": True, **options})


def test_a_volume_becomes_slices_by_the_stated_policy_with_their_place(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "sub-01" / "ses-2" / "sub-01_ses-2_T2w.nii.gz")
    nifti(tmp_path / "in" / "sub-01" / "ses-2" / "sub-01_ses-2_T1w.nii.gz", block() * 2)
    nifti(tmp_path / "in" / "sub-02" / "sub-02_flair.nii")
    nifti(tmp_path / "in" / "sub-02" / "sub-02_tumour_seg.nii")  # a label map: not an image
    records, rejects, tally = ingested(volumes(tmp_path, slices=4, plane="coronal"))
    assert not rejects and tally.taken == 3 and len(records) == 12
    assert {record.facts["contrast"] for record in records} == {
        "T1-weighted MRI",
        "T2-weighted MRI",
        "FLAIR MRI",
    }
    assert len({record.patient for record in records}) == 2 and len({record.study for record in records}) == 2
    places = [record.input_img[0].place for record in records[:4]]
    assert [place["index"] for place in places] == [5, 15, 25, 35]
    assert [place["position_mm"][1] for place in places] == [25.0, 75.0, 125.0, 175.0]
    assert places[0]["plane"] == "coronal" and records[0].facts["patient_left"] == "right"


def test_a_volume_with_fewer_slices_than_wanted_gives_all(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "a.nii", block((30, 40, 3)))
    records, _, _ = ingested(volumes(tmp_path, slices=8))
    assert [record.input_img[0].place["index"] for record in records] == [0, 1, 2]


def test_a_copy_under_another_name_has_the_same_ids_and_pictures(tmp_path: Path) -> None:
    first = nifti(tmp_path / "in" / "a.nii")
    (tmp_path / "in" / "b.nii").write_bytes(first.read_bytes())
    records, _, _ = ingested(volumes(tmp_path, slices=2))
    ids = [record.id for record in records]
    assert ids[:2] == ids[2:]
    assert len(list((tmp_path / "out" / "images").rglob("*.png"))) == 2


def test_names_of_files_are_hidden_unless_asked_for(tmp_path: Path) -> None:
    nifti(tmp_path / "in" / "Mueller_Hans.nii", np.full((30, 40, 20), np.nan, np.float32))
    nifti(tmp_path / "in" / "Schmidt_Eva.nii")
    _, rejects, _ = ingested(volumes(tmp_path))
    assert [reject.code for reject in rejects] == ["not-finite"]
    assert rejects[0].place == "file 1 of 2 by name" and "Mueller" not in str(rejects[0])
    assert "the file has 24000 values that are NaN or Inf" in rejects[0].reason
    _, rejects, _ = ingested(volumes(tmp_path, show_names=True))
    assert rejects[0].place == "Mueller_Hans.nii" and "Mueller_Hans.nii has" in rejects[0].reason


def test_folders_are_labels_and_splits(tmp_path: Path) -> None:
    png(tmp_path / "in" / "train" / "glaucoma" / "a.png", 1)
    png(tmp_path / "in" / "test" / "healthy_eye" / "b.png", 2)
    png(tmp_path / "in" / "train" / "healthy_eye" / "c.png", 3, mode="RGB")
    png(tmp_path / "in" / "d.png", 4)
    (tmp_path / "in" / "notes.txt").write_text("no image")
    records, rejects, tally = ingested(pictures(tmp_path))
    assert tally.taken == 5 and [reject.code for reject in rejects] == ["not-an-image"]
    known = {record.facts.get("labels", [""])[0]: record for record in records if record.split == "train"}
    assert known["glaucoma"].facts["absent"] == ["healthy eye"]
    assert sorted(record.split for record in records) == ["", "test", "train", "train"]
    assert [record for record in records if "labels" not in record.facts][0].split == ""
    both, _, _ = ingested(pictures(tmp_path, exclusive=False))
    assert not any("absent" in record.facts for record in both)


def test_a_link_out_of_the_folder_is_not_followed(tmp_path: Path) -> None:
    png(tmp_path / "elsewhere" / "a.png")
    png(tmp_path / "in" / "b.png")
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "elsewhere" / "a.png")
    (tmp_path / "in" / "circle.png").symlink_to(tmp_path / "in" / "circle.png")
    assert len(pictures(tmp_path).parts()) == 1


def test_a_pattern_or_a_folder_that_does_not_fit_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with pytest.raises(ValueError, match="no regular expression"):
        volumes(tmp_path, patient_in="(")
    with pytest.raises(ValueError, match="has 0 groups, expected one"):
        volumes(tmp_path, patient_in="sub")
    with pytest.raises(ValueError, match="has no modality, expected one of ct, dermoscopy"):
        volumes(tmp_path, modality="")
    with pytest.raises(ValueError, match="holds no .nii, .nii.gz or .nrrd"):
        volumes(tmp_path).parts()
    with pytest.raises(ValueError, match="holds no file"):
        pictures(tmp_path).parts()


@pytest.mark.parametrize(
    ("path", "reason", "said"),
    [
        ("/x/images/empty.png", "empty.png is empty (0 bytes).", "the file is empty (0 bytes)."),
        ("/x/Mueller.nii", "Mueller.nii: no NIfTI (bad Mueller).", "the file: no NIfTI (bad the file)."),
        ("/images/mueller/a.dcm", "a.dcm (mueller) holds no images.", "the file (the file) holds no images."),
        ("/x/Anna/a.nii", "/x/Anna/a.nii has Anna-2.", "the .nii file has the file-2."),
        ("a.png", "a.png holds 1.5, expected 1.", "the .png file holds 1.5, expected 1."),
        ("or/a.png", "a word or (or) a number.", "a word or (or) a number."),
        ("Anna/a.png", "Anna/a.png of Anna.", "the .png file of the file."),
        ("/x/O'Hara \"B\".png", "no image '/x/O\\'Hara \"B\".png'.", "no image 'the .png file'."),
        ("/x/O'Hara \"B\".png", "O'Hara \"B\".png is cut.", "the file is cut."),
        ("/x/An\tna\n.png", r"no image 'An\tna\n.png'.", "no image 'the file'."),
        ("/x/An\tna\n.png", "An na .png is cut.", "the file is cut."),
    ],
)
def test_a_sentence_keeps_its_words_and_loses_the_names(path: str, reason: str, said: str) -> None:
    assert without_names(reason, path) == said
    assert without_names(reason, "/y/other.png", path) == said


def test_quoted_names_of_damaged_pictures_stay_out_of_rejects(tmp_path: Path) -> None:
    for name in ("MUELLER'S \"HANS.png", "MUELLER\tHANS.png", "MUELLER\\HANS.png", "MUELLER\nHANS'.png"):
        (tmp_path / "in" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_text("junk")
    found = list(pictures(tmp_path)())
    assert len(found) == 4 and not any("MUELLER" in str(each) or "HANS" in str(each) for each in found)
