# SPDX-License-Identifier: Apache-2.0
"""History, values, prior studies and boxes go into a prompt; reports and boxes come out of an answer."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from monai.data import MetaTensor

from monai_unimedvl.transforms import recipe
from monai_unimedvl.transforms.regions import Region, region_from_mm, regions_in, without_regions
from monai_unimedvl.transforms.structured import (
    REPORT_PROMPT,
    Case,
    Lab,
    StructuredReport,
    parse_report,
    read_labs,
)


def placed() -> MetaTensor:
    """A slice of 0.5 x 1.5 mm pixels, stretched to square ones and padded to a square."""
    affine = torch.diag(torch.tensor([-0.5, -1.5, 4.0, 1.0], dtype=torch.float64))
    volume = MetaTensor(torch.rand(1, 60, 30, 5) * 100, affine=affine)
    (picture,) = recipe("ct", count=1, window=[0, 100], field="square")(volume)
    return picture


def test_a_table_becomes_a_sentence(tmp_path: Path) -> None:
    path = tmp_path / "labs.csv"
    path.write_text(
        "Name;Value;Unit;Low;High\nCRP;110;mg/L;;5\nHb;9,8;g/dL;12;16\nBlood culture;negative;;;\n"
    )
    labs = read_labs(path)
    assert labs[1] == Lab("Hb", 9.8, "g/dL", 12, 16)
    assert Case(labs=labs).prompt()[0] == (
        "Laboratory: CRP 110 mg/L (high, normal up to 5); Hb 9.8 g/dL (low, normal 12 to 16); "
        "Blood culture negative."
    )
    assert read_labs([{"name": "Na", "value": 140, "low": 135}])[0].words() == "Na 140 (normal from 135)"


@pytest.mark.parametrize(
    "text, message",
    [
        ("name,unit\nCRP,mg/L\n", "labs.csv, row 1 has columns name, unit, but a name and a value"),
        (
            "name,value,high\nCRP,110,5\nHb,9,lots\n",
            "labs.csv, row 2 has high 'lots', but a number or nothing",
        ),
        ("name,value\nCRP,\n", "row 1 .* a name and a value"),
    ],
)
def test_a_table_that_says_too_little_is_refused(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labs.csv").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_labs(tmp_path / "labs.csv")
    with pytest.raises(ValueError, match="nowhere.csv does not exist"):
        read_labs(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00name")
    with pytest.raises(ValueError, match="binary.csv is no text in UTF-8"):
        read_labs(tmp_path / "binary.csv")


def test_a_case_is_told_in_order() -> None:
    now, before = placed(), torch.rand(3, 16, 16)
    case = Case(
        [now], "Has it grown?", history="cough for\n three weeks", labs=[Lab("CRP", 3.0)],
        prior_images=[before], prior_report="Nodule of 8 mm.", regions=[Region(10, 20, 30, 40, "nodule")],
        places=True,
    )  # fmt: skip
    prompt = case.prompt()
    words = [part if isinstance(part, str) else "PICTURE" for part in prompt]
    assert words == [
        "History: cough for three weeks.", "Laboratory: CRP 3.", "Prior study:", "PICTURE",
        "Prior report: Nodule of 8 mm.", "Current study:", "Axial slice, S +8.0 mm:", "PICTURE",
        "Region: <ref>nodule</ref><box>(111,222),(333,444)</box>.", "Has it grown?",
    ]  # fmt: skip
    assert prompt[3] is before and prompt[7] is now
    assert Case([now]).prompt() == [now, REPORT_PROMPT], "what is empty says nothing"
    with pytest.raises(ValueError, match="regions without an image of a recipe"):
        Case([before], regions=[Region(0, 0, 1, 1)]).prompt()
    with pytest.raises(ValueError, match="an empty question"):
        Case([now], question=" ").prompt()


def test_a_box_comes_back_to_the_pixels_and_mm_of_its_source() -> None:
    picture = placed()  # 30 rows of 1.5 mm and 60 columns of 0.5 mm -> 90 x 60 -> 90 x 90
    assert picture.shape == (3, 90, 90) and picture.meta["source"]["size"] == [30, 60]
    shown = Region(12 + 15, 18, 24 + 15, 45)
    back = shown.on_source(picture)
    assert np.allclose([back.left, back.top, back.right, back.bottom], [12, 6, 24, 15])
    mm = shown.in_mm(picture)
    again = region_from_mm(picture, mm[0].tolist(), mm[1].tolist())
    assert np.allclose([again.left, again.top, again.right, again.bottom], [27, 18, 39, 45])
    assert abs(mm[1] - mm[0]).tolist() == pytest.approx([12 * 0.5, 9 * 1.5, 0])
    told = shown.told(picture)
    assert told["pixels"] == [12, 6, 24, 15] and (told["plane"], told["slice"]) == ("axial", 2)
    json.dumps(told)


@settings(max_examples=40, deadline=None)
@given(st.lists(st.floats(0, 90), min_size=4, max_size=4))
def test_words_and_back_are_the_same_box_within_a_thousandth(corners: list[float]) -> None:
    picture = PICTURE
    (x0, x1), (y0, y1) = sorted(corners[:2]), sorted(corners[2:])
    region = Region(x0, y0, x1, y1, "nodule")
    (back,) = regions_in(f"There is {region.words(picture)} in the lung.", picture)
    limit = 90 / 1000 / 2 + 1e-9
    assert back.label == "nodule"
    assert abs(np.array([back.left - x0, back.top - y0, back.right - x1, back.bottom - y1])).max() <= limit


PICTURE = placed()


def test_boxes_of_other_dialects_are_read_and_nonsense_is_words() -> None:
    whole = [(r.left, r.top, r.right, r.bottom) for r in regions_in(
        "<box>[100, 200, 300, 400]</box> <box>(300,400),(100,200)</box> <point>500 500</point>"
        "<box>-50,0,2000,1000</box> <box>one, two</box> <box>1,2,3</box> <box></box>", PICTURE,
    )]  # fmt: skip
    assert whole == [(9, 18, 27, 36), (9, 18, 27, 36), (45, 45, 45, 45), (0, 0, 90, 90)]
    assert without_regions("A <ref>node</ref><box>1,2,3,4</box> is seen.") == "A node is seen."


def test_points_off_the_slice_or_the_picture_are_refused() -> None:
    with pytest.raises(ValueError, match="lies 1.0 slices off the picture"):
        region_from_mm(PICTURE, (-5, -5, 12))
    with pytest.raises(ValueError, match="outside of the picture of 90x90 pixels"):
        region_from_mm(PICTURE, (500, 0, 8))
    with pytest.raises(ValueError, match=r"leaves the picture of 90x90 pixels"):
        Region(0, 0, 91, 5).words(PICTURE)
    with pytest.raises(ValueError, match="expected left <= right"):
        Region(5, 0, 1, 5)
    with pytest.raises(ValueError, match="has no place in mm: give regions in pixels"):
        (flat,) = recipe("histopathology")(torch.randint(0, 255, (3, 20, 20), dtype=torch.uint8))
        region_from_mm(flat, (0, 0, 0))
    with pytest.raises(ValueError, match="without an affine"):
        Region(0, 0, 1, 1).on_source(torch.rand(3, 9, 9))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "answer",
    [
        "Findings: Clear lungs. No effusion.\nImpression: Normal.",
        "**FINDINGS:** Clear lungs. No effusion.\n\n**Conclusion:** Normal.",
        "Clear lungs. No effusion. Impression: Normal.",
        "Findings:\nClear lungs.\nNo effusion.\nImpression:\nNormal.\n",
    ],
)
def test_a_report_is_parted_by_its_headings(answer: str) -> None:
    report = parse_report(answer)
    assert report == StructuredReport(("Clear lungs.", "No effusion."), "Normal.")
    assert report.text() == "Findings:\nClear lungs.\nNo effusion.\n\nImpression:\nNormal."
    assert parse_report(report.text()) == report
    assert json.loads(report.json())["impression"] == "Normal."


def test_a_report_without_headings_is_findings_and_boxes_are_told() -> None:
    report = parse_report("A <ref>nodule</ref><box>(100,200),(300,400)</box> is seen.", [PICTURE])
    assert report.findings == ("A nodule is seen.",) and report.impression == ""
    assert report.regions[0]["label"] == "nodule" and len(report.regions[0]["mm"]) == 2
    full = StructuredReport(("Clear.",), technique="PA view.").text("full")
    assert full == "Technique:\nPA view.\n\nFindings:\nClear."
    with pytest.raises(ValueError, match="template 'long' is not known: use one of short, full"):
        report.text("long")


@pytest.mark.slow  # highdicom takes seconds to import
def test_a_report_goes_to_dicom(tmp_path: Path) -> None:
    pytest.importorskip("highdicom", reason="DICOM SR needs highdicom")
    from monai_unimedvl.provenance import Facts, read_report, write_report

    report = parse_report("Findings: Clear lungs. No effusion. Impression: Normal.")
    path = write_report(report.findings_text, report.impression, tmp_path / "r.dcm", Facts("x", 0, "0" * 64))
    assert read_report(path).findings == "Clear lungs.\nNo effusion."
