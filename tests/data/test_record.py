# SPDX-License-Identifier: Apache-2.0
"""Records: what is one, what is refused and under which code, and that files and the schema say the same."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from monai_unimedvl import Record as PublicRecord
from monai_unimedvl.data import record as module
from monai_unimedvl.data.record import (
    ALL,
    CODES,
    REQUIRED,
    ImageFile,
    Record,
    Reject,
    parse,
    pseudonym,
    read_jsonl,
    stable_id,
    without_content,
    write_jsonl,
)

SCHEMA = json.loads(Path(module.__file__).with_name("record.schema.json").read_text("utf8"))
ROW: dict[str, Any] = {
    "id": "mni-17", "main_task_type": "image-to-text", "sub_task_type": "vqa", "modality": "mri",
    "dataset": "mni2009", "licence": "CC0-1.0", "source": "nilearn",
    "input_img": [{"path": "images/17.png", "height": 64, "width": 48, "place": {"index": 17}}],
    "output_img": [],
    "message": [{"from": "human", "value": "<image> Which plane?"}, {"from": "gpt", "value": "Axial."}],
    "patient": "p-0123456789abcdef", "study": "s-0123456789abcdef", "split": "train",
    "facts": {"labels": ["ventricle"]}, "provenance": {"message": {"by": "template", "name": "plane-1"}},
}  # fmt: skip
IMAGE = ROW["input_img"][0]
PATHS = ("/etc/passwd", "../a.png", "a/../../b.png", "c:/a.png", "a\\b.png", "", ".", "a/..")


def changed(**values: Any) -> dict[str, Any]:
    return {**copy.deepcopy(ROW), **values}


WRONG: list[tuple[str, dict[str, Any]]] = [
    *[("missing-field", {k: v for k, v in ROW.items() if k != name}) for name in REQUIRED],
    *[("wrong-type", changed(**{name: 3})) for name in ALL if name != "split"],
    *[("wrong-value", changed(**{name: " "})) for name in REQUIRED],
    *[("wrong-value", changed(input_img=[{**IMAGE, "path": path}])) for path in PATHS],
    ("unknown-field", changed(licnce="CC0-1.0")),
    ("unknown-field", changed(input_img=[{**IMAGE, "hight": 3}])),
    ("missing-field", changed(input_img=[{"path": "a.png", "height": 3}])),
    ("missing-field", changed(message=[{"value": "a"}])),
    ("wrong-type", changed(input_img=[{**IMAGE, "height": "64"}])),
    ("wrong-type", changed(input_img=[{**IMAGE, "height": True}])),
    ("wrong-type", changed(input_img=["a.png"])),
    ("wrong-type", changed(message=[{"from": "gpt", "value": None}])),
    ("wrong-value", changed(input_img=[{**IMAGE, "width": 0}])),
    ("wrong-value", changed(message=[{"from": "system", "value": "a"}])),
    ("wrong-value", changed(split="training")),
    ("wrong-value", changed(patient="John Doe")),
    ("wrong-value", changed(id="a/b")),
    ("wrong-value", changed(id="John Doe")),
    ("wrong-value", changed(input_img=[{**IMAGE, "path": "../John/Doe.png"}])),
    ("wrong-value", changed(provenance={"message": {"name": "x"}})),
    ("wrong-value", changed(provenance={"words": {"by": "x"}})),
]


def test_a_record_comes_back_from_json_as_it_went() -> None:
    record = Record.from_json(ROW)
    assert PublicRecord is Record
    assert record.to_json() == ROW and Record.from_json(json.loads(json.dumps(record.to_json()))) == record
    assert record.kind == "image-to-text"
    least = {name: ROW[name] for name in REQUIRED}
    empty = Record.from_json(least)
    assert empty.to_json() == least | {"input_img": [], "output_img": [], "message": []}
    assert empty.kind == "text"


@pytest.mark.parametrize("code, row", WRONG, ids=lambda v: v if isinstance(v, str) else "")
def test_what_is_no_record_becomes_a_reject_with_a_code_and_the_schema_agrees(
    code: str, row: dict[str, Any]
) -> None:
    found = parse(row, place="line 3")
    assert isinstance(found, Reject) and found.code == code and found.place == "line 3"
    assert found.code in CODES and found.reason and "John" not in found.reason
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(row, SCHEMA)


def test_the_schema_is_sound_and_takes_what_is_a_record() -> None:
    jsonschema.Draft202012Validator.check_schema(SCHEMA)
    jsonschema.validate(ROW, SCHEMA)
    assert tuple(SCHEMA["properties"]) == (*REQUIRED, *[name for name in ALL if name not in REQUIRED])
    assert SCHEMA["required"] == list(REQUIRED)
    for path in ("a.png", "x/y/z.png", "a..b/c.png", "./a.png", "müller/ä.png", "a/b:c.png"):
        row = changed(input_img=[{**IMAGE, "path": path}])
        jsonschema.validate(row, SCHEMA)
        assert isinstance(parse(row), Record)


def test_marks_are_one_for_each_image_or_none() -> None:
    asked = ROW["message"][0]["value"]
    for words in (asked + " <image>", "<image>" * 5):
        found = parse(changed(message=[{"from": "human", "value": words}]))
        assert isinstance(found, Reject) and found.code == "placeholders"
    assert isinstance(parse(changed(message=[{"from": "human", "value": "Which plane?"}])), Record)
    drawn = changed(message=[*ROW["message"], {"from": "gpt", "value": "<image>"}])
    found = parse(drawn)
    assert isinstance(found, Reject) and "1 <image> marks for 0 images in output_img" in found.reason


@pytest.mark.parametrize("words", ["a\0b", "half a pair \ud800"])
def test_text_that_no_file_can_hold_is_refused(words: str) -> None:
    found = parse(changed(message=[{"from": "gpt", "value": words}]))
    assert isinstance(found, Reject) and found.code == "wrong-value"
    assert isinstance(parse(changed(facts={"a": float("nan")})), Reject)


def test_json_lines_come_back_and_each_bad_line_is_a_reject_with_its_number(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "records.jsonl"
    record = Record.from_json(ROW)
    assert write_jsonl([record, Reject("too-long", "why", "b")], path) == 2
    assert path.read_text("utf8").splitlines()[1] == '{"code":"too-long","reason":"why","id":"b"}'
    good = json.dumps(ROW).encode()
    path.write_bytes(good + b'\n\n{"id": \n[1]\n\xff\xfe\n' + b"[" * 100_000 + b"\n" + good)
    found = list(read_jsonl(path))
    assert [getattr(f, "code", "") for f in found] == ["", "bad-json", "bad-json", "bad-json", "bad-json", ""]
    assert [getattr(f, "place", "") for f in found][1:5] == [f"line {n}" for n in (3, 4, 5, 6)]
    with pytest.raises(ValueError, match="nothing.jsonl is no file, expected records"):
        next(read_jsonl(tmp_path / "nothing.jsonl"))


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    def broken() -> Any:
        yield Record.from_json(ROW)
        raise RuntimeError("full")

    with pytest.raises(RuntimeError, match="full"):
        write_jsonl(broken(), tmp_path / "records.jsonl")
    assert not list(tmp_path.iterdir())


def test_unimedvls_own_lines_are_records_with_the_defaults_said(tmp_path: Path) -> None:
    row = {k: v for k, v in ROW.items() if k not in ("id", "licence", "source", "patient", "study", "split")}
    path = tmp_path / "part1.jsonl"
    path.write_text(json.dumps(row) + "\n" + json.dumps({**row, "modality": "ct"}), "utf8")
    defaults = {"licence": "unknown", "source": "UniMedVL part 1"}
    one, two = list(read_jsonl(path, defaults))
    assert isinstance(one, Record) and isinstance(two, Record) and one.id != two.id
    assert [one, two] == list(read_jsonl(path, defaults)) and one.licence == "unknown"
    assert [found.code for found in read_jsonl(path) if isinstance(found, Reject)] == ["missing-field"] * 2


def test_a_pseudonym_needs_the_key_and_tells_nothing() -> None:
    name = pseudonym("p", "4711", "secret")
    assert name == pseudonym("p", "4711", b"secret") and name.startswith("p-") and len(name) == 18
    assert len({name, pseudonym("p", "4711", "other"), pseudonym("s", "4711", "secret")}) == 3
    assert isinstance(parse(changed(patient=name)), Record)
    for wrong in (("p", "", "k"), ("p", "4711", ""), ("P 1", "4711", "k")):
        with pytest.raises(ValueError, match="empty identifier, key or kind"):
            pseudonym(*wrong)
    assert stable_id("a", {"b": 1}) == stable_id("a", {"b": 1}) != stable_id("a", {"b": 2})


def test_embedded_bytes_are_no_part_of_what_a_record_is() -> None:
    image = ImageFile("a.png", 2, 2, content=b"bytes")
    record = Record(**{k: ROW[k] for k in REQUIRED}, input_img=[image])  # type: ignore[arg-type]
    assert record.input_img == (image,) and "content" not in record.to_json()["input_img"][0]
    assert without_content(record) == record and without_content(record).input_img[0].content is None
    assert b"bytes" not in repr(record).encode()


def test_a_code_is_words_joined_by_hyphens() -> None:
    with pytest.raises(ValueError, match="code 'Too long'"):
        Reject("Too long", "")
