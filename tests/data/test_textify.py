# SPDX-License-Identifier: Apache-2.0
"""Facts into words: true, in several forms, the same under a seed, and nothing said that no fact says."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest

from monai_unimedvl.data.facts import Box
from monai_unimedvl.data.phrases import article, fill, listed, templates
from monai_unimedvl.data.questions import KINDS, asked, measured, place_words, relation
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject
from monai_unimedvl.data.step import Tally
from monai_unimedvl.data.textify import Textify

FACTS: dict[str, Any] = {
    "contrast": "contrast-enhanced CT",
    "organ": "abdomen",
    "view": "PA",
    "labels": ["tumour", "cyst"],
    "absent": ["haemorrhage"],
    "boxes": [
        {"label": "tumour", "box": [10, 10, 30, 30]},
        {"label": "cyst", "box": [70, 80, 80, 90]},
    ],
    "measurements": [
        {"name": "diameter", "value": 12.5, "unit": "mm", "of": "tumour"},
        {"name": "count", "value": 2, "unit": "", "of": "cyst"},
    ],
}


def record(id: str = "r1", **facts: Any) -> Record:
    place = {"plane": "axial", "index": 3}
    return Record(
        id=id, main_task_type="image", sub_task_type="image", modality="ct", dataset="d", licence="MIT",
        source="s", input_img=(ImageFile("images/a.png", 100, 100, place),), facts=facts,
    )  # fmt: skip


def made(record: Record, **options: Any) -> list[Record]:
    tally = Tally()
    items = list(Textify(**options)([record], tally))
    assert tally.taken == tally.kept == 1 and all(isinstance(item, Record) for item in items)
    return [item for item in items if isinstance(item, Record)]


def words(records: list[Record]) -> str:
    return "\n".join(m.value for record in records for m in record.message)


def test_a_record_gives_questions_a_caption_a_prompt_and_itself() -> None:
    found = made(record(**FACTS), questions=20)
    kinds = [one.sub_task_type for one in found]
    assert kinds.count("caption") == kinds.count("text-to-image") == kinds.count("image") == 1
    types = {one.provenance["message"]["template"] for one in found if one.sub_task_type == "vqa"}
    assert types == {
        "modality", "contrast", "plane", "view", "organ", "presence", "count", "size", "location", "region",
        "grounding", "relation",
    }  # fmt: skip
    assert len({one.id for one in found}) == len(found)
    for one in found[:-1]:
        assert one.provenance["id"] == {"by": "textify", "from": "r1"}
    drawn = next(one for one in found if one.sub_task_type == "text-to-image")
    assert not drawn.input_img and drawn.output_img and drawn.kind == "text-to-image"


def test_a_caption_says_the_whole_the_findings_the_regions_and_their_relation() -> None:
    caption = next(one for one in made(record(**FACTS)) if one.sub_task_type == "caption").message[1].value
    for part in (
        "xial contrast-enhanced CT of the abdomen", "umour and cyst", "haemorrhage", "upper left part",
        "12.5 mm across", "above and to the left of", "lower right part", "2 regions",
    ):  # fmt: skip
        assert part in caption, (part, caption)
    assert caption.index("umour and cyst") < caption.index("upper left part") < caption.index("2 regions")


def test_the_same_seed_gives_the_same_words_and_another_seed_others() -> None:
    one = record(**FACTS)
    assert made(one, seed=3) == made(one, seed=3)
    assert words(made(one, seed=3)) != words(made(one, seed=4))
    forms = {words(made(replace(one, id=f"r{n}"), make=("caption",), keep=False)) for n in range(40)}
    assert len(forms) > 20


def test_every_type_of_question_has_several_forms_that_can_be_filled() -> None:
    library = templates("questions")
    found = {}
    side = record(labels=["tumour"], side="left")
    for one in (record(**FACTS), side):
        for kind in KINDS.values():
            for each in kind(one, Random(0), ""):
                found[each.kind] = {**each.gaps, "answer": each.answer}
    assert set(found) == set(library)
    for kind, forms in library.items():
        assert len(forms["ask"]) >= 3 and forms["short"] and forms["full"]
        for template in [*forms["ask"], *forms["short"], *forms["full"]]:
            assert "{" not in fill(template, found[kind])


def test_answers_are_the_facts_also_among_choices() -> None:
    for n in range(30):
        for one in made(record(f"r{n}", **FACTS), questions=20, choices=1.0):
            if one.sub_task_type != "vqa" or one.provenance["message"]["template"] != "size":
                continue
            question, answer = one.message[0].value, one.message[1].value
            options = dict(re.findall(r"^([A-D])\. (.+)$", question, re.MULTILINE))
            assert options[answer] == "12.5 mm" and len(set(options.values())) == len(options) >= 3


def test_presence_is_asked_as_often_of_what_is_not_there() -> None:
    many = {"labels": ["a"], "absent": [f"b{n}" for n in range(9)]}
    found = [each for each in asked(record(**many), Random(0)) if each.kind == "presence"]
    assert sorted(each.answer for each in found) == ["No", "Yes"]


def test_nothing_is_said_that_no_fact_says() -> None:
    bare = replace(record(), input_img=(ImageFile("images/a.png", 100, 100),), modality="unknown")
    assert [one.sub_task_type for one in made(bare)] == ["image"]
    items = list(Textify(keep=False)([bare]))
    assert isinstance(items[0], Reject) and items[0].code == "no-facts"
    said = words(made(record(labels=["tumour"])))
    assert "patient's" not in said and "mm" not in said and "region" not in said
    pet = {"modality", "contrast"} - {
        each.kind for each in asked(replace(record(contrast="PET"), modality="mri"), Random(0))
    }
    assert pet == {"modality"}  # a PET template read by the recipe of MRI is no MRI


def test_slices_of_a_volume_stay_together_and_have_no_regions() -> None:
    images = tuple(ImageFile(f"images/{n}.png", 100, 100, {"plane": "axial", "index": n}) for n in range(3))
    found = made(replace(record(**FACTS), input_img=images), questions=20)
    vqa = [one for one in found if one.sub_task_type == "vqa"]
    assert all(one.message[0].value.count("<image>") == 3 for one in vqa)
    assert not {one.provenance["message"]["template"] for one in vqa} & {"region", "location", "plane"}
    assert not [one for one in found if one.sub_task_type == "text-to-image"]


def test_reports_are_the_radiologists_words() -> None:
    report = {"findings": "Heart size normal.", "impression": "No acute disease."}
    found = made(record(report=report), make=("report",))
    told = {one.sub_task_type: one for one in found}
    assert told["report"].message[1].value == "Findings: Heart size normal.\nImpression: No acute disease."
    assert "Heart size normal." in told["impression"].message[0].value and not told["impression"].input_img
    assert told["impression"].message[1].value == "No acute disease." and told["impression"].kind == "text"


def test_a_report_without_an_image_leaves_its_words_alone() -> None:
    bare = replace(record(report={"findings": "Heart size normal.", "impression": "Normal."}), input_img=())
    assert [each.sub_task_type for each in made(bare)] == ["impression"]
    (reject,) = Textify()([replace(bare, facts={"report": {"findings": "Heart size normal."}})])
    assert isinstance(reject, Reject) and reject.code == "no-facts"


def test_several_questions_share_a_record_and_words_that_came_stay() -> None:
    (one, *_) = made(record(**FACTS), turns=4, make=("questions",))
    assert len(one.message) == 8 and one.message[0].value.startswith("<image>")
    assert "<image>" not in one.message[2].value
    given = replace(record(), message=(Message("human", "Hi"), Message("gpt", "Yes")))
    assert made(given, keep=False) == [given]


def test_captions_that_came_are_used_as_they_are() -> None:
    found = made(record(captions=["A gastric polyp."]), make=("caption", "generation"))
    assert found[0].message[1].value == "A gastric polyp." and "A gastric polyp." in found[1].message[0].value
    assert found[0].provenance["message"]["template"] == "given"


def test_a_folder_of_templates_takes_the_place_of_ours(tmp_path: Path) -> None:
    (tmp_path / "requests.yaml").write_text("caption: [Beschreibe das Bild.]\n")
    found = made(record(**FACTS), make=("caption",), templates=str(tmp_path))
    assert found[0].message[0].value == "<image> Beschreibe das Bild."
    for name, content, message in [
        ("captions", 'view: ["{nonsense}"]', "has a gap 'nonsense', expected one of absent"),
        ("words", "a: [b, c", r"words.yaml cannot be read as YAML \(line"),
        ("questions", "plane: {ask: [3]}", "questions.yaml has 3, expected a sentence"),
        ("requests", "- a", "requests.yaml is no mapping"),
    ]:
        (tmp_path / name).mkdir()
        (tmp_path / name / f"{name}.yaml").write_text(content)
        with pytest.raises(ValueError, match=message):
            Textify(templates=str(tmp_path / name))
    for options in ({"make": ("poems",)}, {"turns": 0}, {"choices": 2.0}):
        with pytest.raises(ValueError, match="expected"):
            Textify(**options)


def test_places_and_relations_are_those_of_the_image() -> None:
    first, second = Box("a", 0, 0, 10, 10), Box("b", 80, 82, 90, 92)
    assert (
        place_words(first, 100, 100) == "upper left part"
        and place_words(second, 100, 100) == "lower right part"
    )
    assert relation(first, second, 100, 100) == "above and to the left of"
    assert relation(second, first, 100, 100) == "below and to the right of"
    assert relation(first, first, 100, 100) == ""
    assert measured(12.0, "mm") == "12 mm" and measured(12.54, "mm") == "12.5 mm"
    assert [article(word) for word in ("MRI", "CT", "X-ray", "axial CT", "PET", "micrograph", "OCT")] == [
        "an", "a", "an", "an", "a", "a", "an",
    ]  # fmt: skip
    assert listed(["a", "b", "c"], "or") == "a, b or c"
