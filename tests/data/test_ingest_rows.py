# SPDX-License-Identifier: Apache-2.0
"""Reports, dialogues, BAGEL's and UniMedVL's rows as records; a row that does not fit is refused alone."""

from __future__ import annotations

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image
from sources import ingested, png

from monai_unimedvl.data.ingest.bagel import IngestBagel
from monai_unimedvl.data.ingest.conversations import IngestConversations
from monai_unimedvl.data.ingest.listed import Numbered
from monai_unimedvl.data.ingest.reports import IngestReports, open_i
from monai_unimedvl.data.ingest.rows import Rows
from monai_unimedvl.data.ingest.unimedvl import IngestUnimedvl
from monai_unimedvl.data.record import InvalidRecord, Record, Reject
from monai_unimedvl.data.step import Tally

XML = """<eCitation><uId id="CXR9"/><licenseURL>http://creativecommons.org/licenses/by-nc-nd/4.0/</licenseURL>
<MedlineCitation><Article><Abstract><AbstractText Label="INDICATION">XXXX</AbstractText>
<AbstractText Label="FINDINGS">Heart is <b>large</b>.</AbstractText>
<AbstractText Label="IMPRESSION">Cardiomegaly.</AbstractText></Abstract></Article></MedlineCitation>
<MeSH><major>Cardiomegaly/mild</major><major>normal</major></MeSH>
<parentImage id="CXR9_IM-1"/><parentImage id="CXR9_IM-2"/></eCitation>"""


def run(kind: Any, tmp_path: Path, **options: Any) -> tuple[list[Record], list[Reject], Tally]:
    given = {"path": str(tmp_path / "in"), "root": str(tmp_path / "out"), "dataset": "d", "public": True}
    return ingested(kind(**{**given, **options}))


def rows(tmp_path: Path, *found: Any, name: str = "in/a.jsonl") -> str:
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if name.endswith(".parquet"):
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(found)), path, row_group_size=2)
    elif name.endswith(".json"):
        path.write_text(json.dumps(list(found)))
    else:
        path.write_text("".join(each if isinstance(each, str) else json.dumps(each) + "\n" for each in found))
    return str(path)


def picture(seed: int = 0) -> bytes:
    stream = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (20, 24, 3), np.uint8)
    exif = Image.Exif()
    exif[270] = "Mueller^Hans"  # ImageDescription
    Image.fromarray(pixels).save(stream, "PNG", exif=exif)
    return stream.getvalue()


# reports


def test_text_reports_find_their_images_by_name_and_by_folder(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, words in {
        "1": "FINDINGS: Clear lungs. IMPRESSION: Normal.",
        "2": "Clear lungs.",
        "3": "",
        "4": "IMPRESSION: Mass.",
    }.items():
        (tmp_path / "in" / f"{name}.txt").write_text(words)
    (tmp_path / "in" / "5.pdf").write_bytes(b"%PDF")
    png(tmp_path / "images" / "1.png")
    png(tmp_path / "images" / "2" / "pa.png", 1)
    png(tmp_path / "images" / "2" / "lateral.png", 2)
    records, rejects, tally = run(IngestReports, tmp_path, images=str(tmp_path / "images"), modality="xray")
    assert [len(record.input_img) for record in records] == [1, 2] and tally.taken == 5
    assert records[0].facts["report"] == {"findings": "Clear lungs.", "impression": "Normal."}
    assert [reject.code for reject in rejects] == ["empty-report", "no-label", "not-an-image"]
    assert records[0].study.startswith("s-") and records[0].main_task_type == "image"


def test_open_i_reports_name_images_licence_and_terms(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    with tarfile.open(tmp_path / "in" / "reports.tgz", "w:gz") as archive:
        for name, content in {
            "ecgen/1.xml": XML.encode(),
            "ecgen/2.xml": b"<broken",
            "ecgen/3.xml": b'<!DOCTYPE a [<!ENTITY b "c">]><a/>',
            "ecgen/4.xml": b"<a/>",
        }.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    png(tmp_path / "images" / "CXR9_IM-1.png", 1)
    png(tmp_path / "images" / "CXR9_IM-2.png", 2)
    path = str(tmp_path / "in" / "reports.tgz")
    records, rejects, _ = run(
        IngestReports, tmp_path, path=path, images=str(tmp_path / "images"), modality="xray"
    )
    (record,) = records
    assert record.licence == "CC-BY-NC-ND-4.0" and len(record.input_img) == 2
    assert (
        record.facts["labels"] == ["cardiomegaly"] and record.facts["report"]["findings"] == "Heart is large."
    )
    assert [reject.code for reject in rejects] == ["bad-xml", "bad-xml", "empty-report"]
    assert rejects[0].place == "report 2 of 4 by name"
    alone, _, _ = run(IngestReports, tmp_path, path=path, modality="xray")
    assert alone[0].kind == "text" and alone[0].main_task_type == "text"
    with pytest.raises(InvalidRecord, match="declares entities"):
        open_i(b"<!DOCTYPE x><a/>")


# dialogues


def test_llava_and_sharegpt_rows_become_dialogues_without_what_images_carry(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture())
    path = rows(
        tmp_path,
        {
            "id": 1,
            "image": "a.png",
            "conversations": [
                {"from": "human", "value": "<image>\nWhat?"},
                {"from": "gpt", "value": "A CT."},
            ],
        },
        {
            "messages": [
                {"role": "system", "content": "Be brief."},
                {"role": "user", "content": "Hi"},
                {"role": "assistant", "content": "Hello"},
            ]
        },
        {
            "images": ["a.png"],
            "messages": [
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Plane?"}]},
                {"role": "assistant", "content": "axial"},
            ],
        },
        {"image": "a.png", "conversations": [{"from": "human", "value": "What?"}]},
        {"conversations": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "x"}]},
        {
            "image": "a.png",
            "conversations": [{"from": "human", "value": "<image><image>"}, {"from": "gpt", "value": "x"}],
        },
        {"conversations": [{"from": "narrator", "value": "x"}]},
        {"conversations": []},
        {"conversations": ["x"]},
        {"image": "../../etc/passwd", "conversations": [{"from": "gpt", "value": "x"}]},
        "{broken\n",
        "[1, 2]\n",
    )
    records, rejects, tally = run(IngestConversations, tmp_path, path=path, modality="ct")
    assert [[m.value for m in record.message] for record in records] == [
        ["<image>\nWhat?", "A CT."],
        ["Be brief.\n\nHi", "Hello"],
        ["<image> Plane?", "axial"],
    ]
    assert [reject.code for reject in rejects] == [
        "empty-text",
        "placeholders",
        "placeholders",
        "bad-row",
        "empty-text",
        "bad-row",
        "path-outside",
        "bad-json",
        "bad-row",
    ]
    assert [reject.place for reject in rejects][:2] == ["row 4", "row 5"] and tally.taken == 12
    written = (tmp_path / "out" / records[0].input_img[0].path).read_bytes()
    assert b"Mueller" not in written and b"Mueller" in picture()
    (again,), _, _ = run(
        IngestConversations,
        tmp_path,
        path=rows(
            tmp_path,
            {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]},
            name="in/b.json",
        ),
    )
    assert again.kind == "text" and again.modality == "unknown"


# BAGEL


def test_bagel_rows_become_images_to_draw_and_edits(tmp_path: Path) -> None:
    rows(
        tmp_path,
        {"image": picture(), "captions": json.dumps({"a": "A CT.", "b": "CT of the head."})},
        {"image": picture(1), "captions": "{}"},
        {"image": b"broken", "captions": '{"a": "x"}'},
        name="in/t2i.parquet",
    )
    rows(
        tmp_path,
        {
            "image_list": [picture(), picture(1), picture(2)],
            "instruction_list": [["Turn it."], ["Sharpen.", "More."]],
        },
        {"image_list": [picture()], "instruction_list": []},
        name="in/editing.parquet",
    )
    records, rejects, tally = run(IngestBagel, tmp_path)
    assert [record.kind for record in records] == ["interleaved", "interleaved", "text-to-image"]
    assert records[0].output_img[0].path == records[1].input_img[0].path
    assert records[0].message[0].value == "Turn it." and records[1].message[0].value in ("Sharpen.", "More.")
    assert (
        records[2].message[0].value in ("A CT.", "CT of the head.") and len(records[2].facts["captions"]) == 2
    )
    assert [(reject.code, reject.place) for reject in rejects] == [
        ("bad-row", "file 1 row 2"),
        ("empty-text", "file 2 row 2"),
        ("image-damaged", "file 2 row 3"),
    ]
    assert run(IngestBagel, tmp_path)[0] == records and tally.taken == 5
    chosen = {run(IngestBagel, tmp_path, seed=n)[0][2].message[0].value for n in range(8)}
    assert chosen == {"A CT.", "CT of the head."}


# UniMedVL


PUBLISHED = {
    "main_task_type": "understanding",
    "sub_task_type": "vqa",
    "modality": "ct",
    "dataset": "x",
    "input_img": [{"path": "a.png", "height": 20, "width": 24}],
    "output_img": [],
    "message": [{"from": "human", "value": "<image> What?"}, {"from": "gpt", "value": "A CT."}],
}


def test_published_rows_get_an_id_a_licence_and_their_images(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture())
    ours = {
        **PUBLISHED,
        "id": "mine",
        "licence": "MIT",
        "source": "s",
        "patient": "p-0123456789abcdef",
        "split": "val",
    }
    wrong = [
        {**PUBLISHED, "patient": "Mueller"},
        {**PUBLISHED, "age": 3},
        {**PUBLISHED, "input_img": [{"path": "b.png"}]},
    ]
    path = rows(tmp_path, PUBLISHED, ours, *wrong, {**PUBLISHED, "message": ["x"]})
    records, rejects, _ = run(IngestUnimedvl, tmp_path, path=path, licence="CC-BY-NC-4.0")
    first, second = records
    assert first.licence == "CC-BY-NC-4.0" and first.dataset == "x" and len(first.id) == 24
    assert (
        first.input_img[0].path.startswith("images/")
        and (tmp_path / "out" / first.input_img[0].path).is_file()
    )
    assert (second.id, second.licence, second.patient, second.split) == (
        "mine",
        "MIT",
        "p-0123456789abcdef",
        "val",
    )
    assert [reject.code for reject in rejects] == ["wrong-value", "unknown-field", "image-missing", "bad-row"]
    assert "Mueller" not in str(rejects)


def test_published_parquet_is_read_with_lists_or_with_text(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(picture())
    texts = {key: json.dumps(value) if isinstance(value, list) else value for key, value in PUBLISHED.items()}
    rows(tmp_path, PUBLISHED, name="in/lists.parquet")
    rows(tmp_path, texts, {**texts, "message": "[broken"}, name="in/texts.parquet")
    records, rejects, _ = run(IngestUnimedvl, tmp_path)
    assert len(records) == 2 and records[0].message == records[1].message
    assert [reject.code for reject in rejects] == ["bad-row"]


# rows


def test_rows_of_every_form_are_the_same(tmp_path: Path) -> None:
    found = [{"a": str(n), "b": "x, y"} for n in range(5)]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.csv").write_text("a,b\n" + "".join(f'{n},"x, y"\n' for n in range(5)))
    (tmp_path / "in" / "a.tsv").write_text("a\tb\n" + "".join(f"{n}\tx, y\n" for n in range(5)))
    for name in ("in/a.jsonl", "in/a.json", "in/a.parquet"):
        rows(tmp_path, *found, name=name)
    for name in ("a.csv", "a.tsv", "a.jsonl", "a.json", "a.parquet"):
        assert [dict(row) for row in Rows(tmp_path / "in" / name)] == found, name
    assert list(Numbered([2, 0, 1])) == [(0, 0), (0, 1), (2, 0)]
    (tmp_path / "in" / "map.json").write_text('{"a.png": "mass", "b.png": {"label": "x"}}')
    assert list(Rows(tmp_path / "in" / "map.json"))[0] == {"image": "a.png", "label": "mass"}


def test_files_without_rows_are_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for name, content, message in [
        ("a.json", "{", "is no JSON"),
        ("b.json", "3", "is a JSON int"),
        ("c.csv", "", "is empty"),
        ("d.csv", "a,a\n1,2\n", "two columns of one name"),
        ("e.parquet", "PAR1", "cannot be read as Parquet"),
        ("f.xlsx", "x", "unknown suffix"),
    ]:
        (tmp_path / "in" / name).write_text(content)
        with pytest.raises(ValueError, match=message):
            Rows(tmp_path / "in" / name)
    with pytest.raises(ValueError, match="is no file"):
        Rows(tmp_path / "in" / "none.csv")
    (tmp_path / "none").mkdir()
    for kind in (IngestConversations, IngestBagel, IngestUnimedvl):
        with pytest.raises(ValueError, match="holds no row"):
            run(kind, tmp_path, path=str(tmp_path / "none"))
        with pytest.raises(ValueError, match="expected no settings"):
            run(kind, tmp_path, path=str(tmp_path / "none"), settings={"window": "lung"})
