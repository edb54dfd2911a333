# SPDX-License-Identifier: Apache-2.0
"""Rows of tables as records: labels, measurements, words; reports by their headings."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from sources import ingested, png

from monai_unimedvl.data.ingest.headings import sections
from monai_unimedvl.data.ingest.table import IngestTable
from monai_unimedvl.data.ingest.words import without_identifiers
from monai_unimedvl.data.record import Record, Reject
from monai_unimedvl.data.step import Tally


def run(kind: Any, tmp_path: Path, **options: Any) -> tuple[list[Record], list[Reject], Tally]:
    given = {"path": str(tmp_path / "in"), "root": str(tmp_path / "out"), "dataset": "d", "modality": "mri"}
    return ingested(kind(**{**given, "public": True, **options}))


def table(tmp_path: Path, rows: list[dict[str, Any]], name: str = "labels.csv") -> str:
    (tmp_path / "in").mkdir(exist_ok=True)
    path = tmp_path / "in" / name
    if name.endswith(".csv"):
        with path.open("w", encoding="utf8", newline="") as stream:
            writer = csv.DictWriter(stream, rows[0])
            writer.writeheader()
            writer.writerows(rows)
    else:
        path.write_text(json.dumps(rows))
    return str(path)


def test_a_table_says_what_is_there_what_is_not_and_how_large(tmp_path: Path) -> None:
    png(tmp_path / "in" / "a.png")
    rows = [
        {"Path": "a.png", "PatientID": "P1", "Name": "Mueller", "Edema": "1.0", "Mass": "0", "Nodule": "-1",
         "heart_mm": "131.5", "split": "valid", "side": "L"},
        {"Path": "a.png", "PatientID": "P1", "Name": "Mueller", "Edema": "maybe", "Mass": "0", "Nodule": "",
         "heart_mm": "", "split": "train", "side": ""},
    ]  # fmt: skip
    columns = {"image": "Path", "labels": "Edema|Mass|Nodule"}
    records, rejects, tally = run(
        IngestTable, tmp_path, path=table(tmp_path, rows), columns=columns, modality="xray"
    )
    assert len(records) == 1 and [(r.code, r.place) for r in rejects] == [("bad-label", "row 2")]
    facts = records[0].facts
    assert facts["labels"] == ["Edema"] and facts["absent"] == ["Mass"] and facts["side"] == "left"
    assert facts["measurements"] == [{"name": "heart", "value": 131.5, "unit": "mm"}]
    assert records[0].split == "val" and records[0].patient and "Mueller" not in str(records[0].to_json())


def labelled(tmp_path: Path, rows: list[dict[str, Any]], **columns: str) -> list[dict[str, Any] | str]:
    """What each row teaches, or why it is refused."""
    png(tmp_path / "in" / "a.png")
    path = table(tmp_path, [{"Image Index": "a.png", **row} for row in rows])
    records, rejects, _ = run(IngestTable, tmp_path, path=path, columns=columns, modality="xray")
    told = {int(r.place.split()[1]): r.reason for r in rejects}
    kept = iter(records)
    keys = ("labels", "absent", "measurements")
    return [
        told.get(number) or {key: value for key, value in next(kept).facts.items() if key in keys}
        for number in range(1, len(rows) + 1)
    ]


def test_a_table_like_chexperts_says_of_no_finding_what_is_absent(tmp_path: Path) -> None:
    names = ["No Finding", "Edema", "Pleural_Effusion", "Support Devices"]
    cells = [("", "1.0", "-1.0", "1.0"), ("1.0", "", "", ""), ("1.0", "", "-1.0", "1.0"),
             ("0.0", "0.0", "", ""), ("1.0", "1.0", "", ""), ("", "2", "", "")]  # fmt: skip
    rows = [dict(zip(names, row, strict=True)) for row in cells]
    assert labelled(tmp_path, rows, labels="|".join(names)) == [
        {"labels": ["Edema", "Support Devices"]},
        {"absent": ["Edema", "Pleural Effusion"]},
        {"labels": ["Support Devices"], "absent": ["Edema"]},
        {"absent": ["Edema"]},
        "a row has a finding and says that none was found: mend it.",
        "column 'Edema' holds no truth, expected 1, 0, -1 or nothing.",
    ]
    with pytest.raises(ValueError, match="labels names only 'No Finding', expected columns of findings too"):
        labelled(tmp_path, rows, labels="No Finding")


def test_a_table_like_chest_xray14s_says_of_no_finding_what_is_absent(tmp_path: Path) -> None:
    words = ["Mass|Edema", "No Finding", "Edema", "", "Edema|No Finding", "7"]
    found = labelled(tmp_path, [{"Finding Labels": word, "Patient ID": "1"} for word in words])
    assert found[:3] == [{"labels": ["Mass", "Edema"]}, {"absent": ["Edema", "Mass"]}, {"labels": ["Edema"]}]
    assert "says nothing" in found[3] and "says that none was found" in found[4]
    assert "holds a number or truth that names no finding" in found[5]
    found = labelled(tmp_path, [{"class": word} for word in ("normal", "pneumonia")])
    assert found == [{"absent": ["pneumonia"]}, {"labels": ["pneumonia"]}]


def test_a_truth_needs_a_column_that_names_the_finding(tmp_path: Path) -> None:
    for name, values in [("label", "10"), ("Diagnosis", ["yes", "no"]), ("label", "0123")]:
        found = labelled(tmp_path, [{name: value} for value in values])
        assert all("rename it, or write the names" in each for each in found) and len(found) == len(values)
    found = labelled(tmp_path, [{"grade": n} for n in "012"], labels="grade")
    assert all("column 'grade' holds a number or truth that names no finding" in each for each in found)
    found = labelled(
        tmp_path, [{"pneumothorax": n, "age": "4"} for n in ("1", "0", "-1")], labels="pneumothorax"
    )
    assert found[:2] == [{"labels": ["pneumothorax"]}, {"absent": ["pneumothorax"]}]
    assert "says nothing about its image" in found[2]
    found = labelled(tmp_path, [{"effusion": said} for said in ("1", "0", "maybe")], labels="effusion")
    assert found[:2] == [{"labels": ["effusion"]}, {"absent": ["effusion"]}]
    assert "column 'effusion' holds no truth" in found[2], "one odd word does not lose the others"


def test_a_dash_in_a_column_of_names_is_no_name(tmp_path: Path) -> None:
    found = labelled(tmp_path, [{"label": said} for said in ("mass", "-", "normal")])
    assert found[0] == {"labels": ["mass"]} and found[2] == {"absent": ["mass"]}
    assert "says nothing" in found[1]


def test_a_size_is_not_below_zero_and_minus_one_is_not_known(tmp_path: Path) -> None:
    rows = [{"label": "x", "heart_mm": size, "mean_HU": number} for size, number in
            [("-1", "-1"), ("-1.0", ""), ("0", "-40"), ("-3", "")]]  # fmt: skip
    heart, mean = {"name": "heart", "unit": "mm"}, {"name": "mean", "unit": "hu"}
    assert labelled(tmp_path, rows) == [
        {"labels": ["x"], "measurements": [mean | {"value": -1.0}]},
        {"labels": ["x"]},
        {"labels": ["x"], "measurements": [heart | {"value": 0.0}, mean | {"value": -40.0}]},
        "column 'heart_mm' holds a size below 0, expected 0 or more, and -1 or nothing for not known.",
    ]


def test_words_of_a_table_lose_what_points_at_a_person(tmp_path: Path) -> None:
    png(tmp_path / "in" / "a.png")
    report = (
        "Exam of 03/04/2017 by Dr. Jane Roe, MRN: A77812. FINDINGS: Heart size normal. IMPRESSION: No edema."
    )
    rows = [
        {"image": "a.png", "report": report},
        {"image": "a.png", "question": "Is there edema?", "answer": "No."},
        {"image": "a.png", "report": ""},
    ]
    path = table(tmp_path, rows[:1])
    records, _, _ = run(IngestTable, tmp_path, path=path, modality="xray")
    assert records[0].facts["report"] == {"findings": "Heart size normal.", "impression": "No edema."}
    given = [{"question": "", "answer": "", "report": "", **row} for row in rows]
    records, rejects, _ = run(IngestTable, tmp_path, path=table(tmp_path, given, "b.json"), modality="xray")
    assert [m.value for m in records[1].message] == ["<image> Is there edema?", "No."]
    assert records[1].sub_task_type == "vqa" and [r.code for r in rejects] == ["no-label"]
    words = "Seen on 03/04/2017, call 030-1234-5678, a.b@c.de, 12345678. TE 80 ms, 12 mm, T2."
    rows = [{"image": "a.png", "caption": words}]
    records, _, _ = run(IngestTable, tmp_path, path=table(tmp_path, rows, "c.json"), modality="xray")
    hidden = "Seen on [removed], call [removed], [removed], [removed]. TE 80 ms, 12 mm, T2."
    assert records[0].facts["captions"] == [hidden]
    _, rejects, _ = run(
        IngestTable, tmp_path, path=table(tmp_path, rows, "c.json"), modality="xray", identifiers="reject"
    )
    assert [r.code for r in rejects] == ["identifier"]


@pytest.mark.parametrize(
    "words, left",
    [
        ("PATIENT: YAMADA TARO. SEEN BY DR. SMITH AND DR JOHN DOE ON 2020/01/05.",
         "PATIENT:[removed]. SEEN BY [removed] AND [removed] ON [removed]."),
        ("MRS. MILLER IS 55. Prof. Dr. Weber called. DOB 1955.03.04. MRN 1234567A.",
         "[removed] IS 55. [removed] called. DOB [removed]. [removed]"),
        ("NOTIFIED DR. JONES IN CLINIC. DR. LEE WAS CALLED.",
         "NOTIFIED [removed] IN CLINIC. [removed] WAS CALLED."),
        ("MR BRAIN. DR CHEST PA. MS LESIONS ARE SEEN. T2 MR SEQUENCE. MRS PEAKS OF CHOLINE. Patient: supine.",
         ""),
        ("Grade 2/3, 4/5 lesions of 12/14 nodes; 2020 scans of 3.5 cm.", ""),
    ],
)  # fmt: skip
def test_names_and_dates_leave_as_reports_write_them(words: str, left: str) -> None:
    assert without_identifiers(words)[0] == (left or words)


def test_a_patient_may_stand_in_the_path_of_an_image(tmp_path: Path) -> None:
    for name in ("patient1/a", "patient1/b", "patient2/a"):
        png(tmp_path / "in" / f"{name}.png")
    rows = [{"image": f"{name}.png", "label": "x"} for name in ("patient1/a", "patient1/b", "patient2/a")]
    path = table(tmp_path, rows)
    records, _, _ = run(IngestTable, tmp_path, path=path, modality="xray", patient_in="patient([0-9]+)")
    assert len({record.patient for record in records}) == 2 and records[0].patient == records[1].patient
    assert {record.facts["patient_from"] for record in records} == {"patient"}
    with pytest.raises(ValueError, match="has 0 groups, expected one in brackets"):
        run(IngestTable, tmp_path, path=path, modality="xray", patient_in="patient")


def test_a_table_names_no_file_outside_of_its_folder(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    rows = [
        {"image": "../a.png", "label": "x"},
        {"image": "absent.png", "label": "x"},
        {"image": "", "label": "x"},
    ]
    _, rejects, tally = run(IngestTable, tmp_path, path=table(tmp_path, rows), modality="xray")
    assert [r.code for r in rejects] == ["path-outside", "image-missing", "image-missing"]
    assert tally.taken == 3


def test_a_table_without_what_is_needed_is_one_sentence(tmp_path: Path) -> None:
    for rows, options, message in [
        ([{"x": "1"}], {}, "expected one of images"),
        ([{"image": "a", "label": "b"}], {"columns": {"labels": "Edema"}}, "no column 'Edema'"),
        ([{"image": "a", "label": "b"}], {"columns": {"mass": "label"}}, "columns names 'mass'"),
    ]:
        with pytest.raises(ValueError, match=message):
            run(IngestTable, tmp_path, path=table(tmp_path, rows), modality="xray", **options)


def test_a_report_is_cut_at_its_headings() -> None:
    assert sections("No headings here.") == {"findings": "No headings here."}
    assert sections("CLINICAL: pain\nFINDINGS: a b.\nIMPRESSION:\n1. c") == {
        "findings": "a b.", "impression": "1. c",
    }  # fmt: skip
    mixed = "Indication: cough. Findings: Clear.\nTechnique: CT. **Impression:** None. Conclusion: Well."
    assert sections(mixed) == {"findings": "Clear.", "impression": "None.\nWell."}
    assert sections("FINDINGS/IMPRESSION: a. RECOMMENDATION(S): b.") == {"findings": "a."}


def test_a_heading_may_stand_alone_on_a_line() -> None:
    cut = {"findings": "The heart is normal.\nFindings agree.", "impression": "Normal chest."}
    for mark in ("{}", "**{}**", "## {}", "{}:"):
        heads = [mark.format(word) for word in ("History", "FINDINGS", "Impression")]
        report = "{}\nSmoker.\n{}\nThe heart is normal.\nFindings agree.\n\n{}\nNormal chest."
        assert sections(report.format(*heads)) == cut


@pytest.mark.parametrize("gap", [" ", "\n", "\n\n  "])
def test_headings_inside_a_section_stay_in_it(gap: str) -> None:
    inside = gap.join(["LUNGS: clear.", "HEART AND MEDIASTINUM: enlarged.", "OTHER FINDINGS: none."])
    report = gap.join(
        ["CLINICAL HISTORY: pain.", "FINDINGS:", inside, "IMPRESSION:", "MAIN: x.", "SIGNED BY: y"]
    )
    assert sections(report) == {"findings": inside, "impression": "MAIN: x."}


def test_a_known_word_inside_a_sentence_opens_no_section() -> None:
    said = "Lungs clear, with one impression: a scar."
    assert sections(f"FINDINGS: {said}") == {"findings": said}
    assert sections("History: a cough. Lungs clear.") == {"findings": "History: a cough. Lungs clear."}
    limited = "Exam: limited by motion. Lungs clear."
    assert sections(f"FINDINGS: {limited}\nTECHNIQUE: CT.") == {"findings": limited}
    for opened in ("FINDINGS:\nTechnique: CT.", "FINDINGS: TECHNIQUE: CT."):
        assert sections(f"{opened}\nIMPRESSION: well.") == {"impression": "well."}
