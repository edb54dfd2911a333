# SPDX-License-Identifier: Apache-2.0
"""Captions for drawing: three steps, each checked, and a caption that no model may change."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from sources import png
from tiny_models import captioner

from monai_unimedvl.data.backends.replay import Remembered
from monai_unimedvl.data.caption import BEGINNING, Caption, bare, described, fused, planned, prompt
from monai_unimedvl.data.files import read_records, write_records
from monai_unimedvl.data.fusion import changes, concludes, said, turned
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject
from monai_unimedvl.data.step import Stop, Tally

CAPTION = "Axial CT of the abdomen. A 3.5 cm cyst lies in the left kidney. No hydronephrosis."
DESCRIPTION = (
    "An axial slice through the middle of the body. The kidneys lie beside the spine and the liver is grey."
)
PROMPT = (
    "Please generate a realistic CT image showing an axial slice of the abdomen with a round cyst of 35 mm "
    "in the left kidney, the liver grey beside it, and no hydronephrosis."
)
PLAN = (
    "<think>The left kidney must hold a dark round cyst, because the request says so.</think>\n"
    "Here is the generated CT image that displays:\n- the left kidney with a 35 mm cyst\n- the liver"
)


class Script:
    """A writer that answers by the step it is asked for; `wrong` gives its first answers."""

    name = "script-7b"

    def __init__(self, **wrong: list[str]) -> None:
        self.wrong, self.asked = wrong, []

    def write(self, prompt: str, image: Any = None, *, count: int = 1, seed: int = 0) -> list[str]:
        step = "describe" if image is not None else "plan" if "<think>" in prompt else "fuse"
        self.asked.append((step, prompt))
        queue = self.wrong.get(step, [])
        return [queue.pop(0) if queue else {"describe": DESCRIPTION, "fuse": PROMPT, "plan": PLAN}[step]]


@pytest.fixture
def record(tmp_path: Path) -> Record:
    """An image to be drawn from a caption."""
    png(tmp_path / "a.png", size=(40, 40))
    return Record(
        id="r", main_task_type="text-to-image", sub_task_type="text-to-image", modality="ct", dataset="d",
        licence="MIT", source="s", output_img=(ImageFile("a.png", 40, 40),),
        message=(Message("human", CAPTION),),
    )  # fmt: skip


def run(record: Record, root: Path, model: Any, **options: Any) -> Any:
    step = Caption(writer="replay:x", root=str(root), **options)
    object.__setattr__(step, "model", model)
    tally = Tally()
    (item,) = step([record], tally)
    assert tally.taken == 1
    return item


def test_a_caption_becomes_a_prompt_and_a_plan_that_say_who_wrote_them(
    record: Record, tmp_path: Path
) -> None:
    model = Script()
    made = run(record, tmp_path, model, plans=1.0)
    assert [m.value for m in made.message] == [PROMPT, PLAN] and made.sub_task_type == "text-to-image-plan"
    assert made.facts["caption"] == {"original": CAPTION, "description": DESCRIPTION}
    told = made.provenance["message"]
    assert told["model"] == "script-7b" and told["prompts"] == {
        name: prompt(name)[1] for name in ("describe", "fuse", "plan")
    }
    assert made.id != "r" and made.provenance["id"]["from"] == "r"
    assert [step for step, _ in model.asked] == ["describe", "fuse", "plan"]
    assert CAPTION in model.asked[1][1] and DESCRIPTION in model.asked[1][1] and PROMPT in model.asked[2][1]
    assert CAPTION not in model.asked[0][1]  # the description is of the image alone
    bare_ = run(record, tmp_path, Script(), plans=0.0)
    assert [m.value for m in bare_.message] == [PROMPT] and "plan" not in bare_.provenance["message"][
        "prompts"
    ]


@pytest.mark.parametrize(
    "step, answer, code",
    [
        ("describe", "Short.", "bad-description"),
        ("describe", DESCRIPTION + " This is consistent with a malignant tumour.", "diagnosis"),
        ("fuse", "A CT of the left kidney with a 3.5 cm cyst, no hydronephrosis.", "bad-prompt"),
        ("fuse", PROMPT.replace("left", "right"), "fusion-changed"),
        ("fuse", PROMPT.replace("35 mm", "53 mm"), "fusion-changed"),
        ("fuse", PROMPT.replace("kidney", "liver"), "fusion-changed"),
        ("fuse", PROMPT.replace(", and no hydronephrosis", ""), "fusion-changed"),
        ("plan", "Here is the generated CT image that displays:\n- a cyst", "bad-plan"),
        ("plan", PLAN.replace("- the", "the"), "bad-plan"),
        ("plan", PLAN.replace("the left kidney with", "the right kidney with"), "plan-changed"),
    ],
)
def test_an_answer_that_breaks_the_rules_is_asked_again_and_then_refused(
    record: Record, tmp_path: Path, step: str, answer: str, code: str
) -> None:
    once = Script(**{step: [answer]})
    assert run(record, tmp_path, once, plans=1.0).message[0].value == PROMPT
    again = [asked for name, asked in once.asked if name == step][1]
    assert "An earlier answer was refused: " in again
    kept = run(record, tmp_path, Script(**{step: [answer] * 3}), plans=1.0)
    assert kept.message == record.message and kept.facts["caption_refused"] == code and kept.id == "r"
    lost = run(record, tmp_path, Script(**{step: [answer] * 3}), plans=1.0, failed="reject")
    assert isinstance(lost, Reject) and lost.code == code


def test_other_records_go_through_and_damaged_images_do_not(record: Record, tmp_path: Path) -> None:
    model = Script()
    for other in (
        {"output_img": (), "input_img": record.output_img},
        {"message": ()},
        {"message": (Message("human", "Draw."), Message("gpt", "Here."))},
    ):
        given = Record(**{**record.__dict__, **other})
        assert run(given, tmp_path, model) is given
    assert not model.asked
    (tmp_path / "a.png").write_bytes(b"broken")
    assert run(record, tmp_path, model).code == "image-damaged"


def test_a_run_that_was_killed_asks_nothing_twice(record: Record, tmp_path: Path) -> None:
    memory = tmp_path / "m.jsonl"
    first = run(record, tmp_path, Remembered(memory, Script()), plans=1.0)
    model = Script()
    assert run(record, tmp_path, Remembered(memory, model), plans=1.0) == first and not model.asked
    write_records([record], tmp_path / "in.jsonl")
    replay = Caption(writer=f"replay:{memory}", root=str(tmp_path), plans=1.0)
    assert list(replay(read_records(tmp_path / "in.jsonl"))) == [first]
    (item,) = Caption(writer=f"replay:{memory}", root=str(tmp_path), plans=1.0, seed=9)([record])
    assert isinstance(item, Reject) and item.code == "not-recorded"


def test_a_model_of_random_numbers_fails_the_checks_and_changes_nothing(
    record: Record, tmp_path: Path
) -> None:
    folder = captioner(tmp_path / "llava")
    step = Caption(writer=f"folder:{folder}", root=str(tmp_path), tries=1, max_tokens=4)
    (item,) = step([record])
    assert isinstance(item, Record) and item.message == record.message
    assert item.facts["caption_refused"] == "bad-description"
    with pytest.raises(Stop, match="holds no config.json"):
        list(Caption(writer="folder:/nowhere", root=str(tmp_path))([record]))


def test_prompts_are_files_of_which_own_ones_take_the_place(tmp_path: Path) -> None:
    text, known = prompt("fuse")
    assert "{caption}" in text and "SPDX" not in text and len(known) == 16
    (tmp_path / "fuse.txt").write_text("Join {caption} and {description} of the {modality}.")
    assert prompt("fuse", str(tmp_path))[0].startswith("Join") and prompt("fuse", str(tmp_path))[1] != known
    (tmp_path / "plan.txt").write_text("Plan it.")
    with pytest.raises(ValueError, match="plan.txt has no gap {modality}"):
        Caption(writer="x", prompts=str(tmp_path))
    for options in ({"plans": 2.0}, {"tries": 0}, {"failed": "drop"}):
        with pytest.raises(ValueError, match="expected a share"):
            Caption(writer="x", **options)


# what must survive


@pytest.mark.parametrize(
    "rewritten",
    [
        "The left renal cyst is 35 mm wide; hydronephrosis is not... no hydronephrosis.",
        "On the left side the left kidney shows a cyst of 3.5 cm, without hydronephrosis.",
    ],
)
def test_the_same_in_other_words_is_no_change(rewritten: str) -> None:
    assert changes("A 3.5 cm cyst lies in the left kidney. No hydronephrosis.", rewritten) == []


@pytest.mark.parametrize(
    "original, rewritten, change",
    [
        ("Left pleural effusion.", "Pleural effusion.", "side 'left' is lost"),
        ("Left pleural effusion.", "Right pleural effusion, left.", "left 'pleura' became right"),
        ("Bilateral lung nodules.", "Lung nodules.", "side 'both' is lost"),
        ("Both kidneys are normal.", "The kidneys are normal.", "side 'both' is lost"),
        ("The liver is enlarged.", "The spleen is enlarged.", "organ 'liver' is lost"),
        ("Two nodules.", "Three nodules.", "number '2' is lost"),
        ("A mass of 12 x 14 mm.", "A mass of 12 mm.", "number '14 mm' is lost"),
        ("No pneumothorax or effusion.", "No pneumothorax.", "'effusion' is lost"),
        ("Heart normal without oedema.", "Heart normal with oedema.", "'oedema' is lost"),
    ],
)
def test_what_was_lost_or_turned_around_is_found(original: str, rewritten: str, change: str) -> None:
    assert any(change in found for found in changes(original, rewritten)), changes(original, rewritten)


@pytest.mark.parametrize("check", [lambda a, b: changes(a, b), turned])
def test_a_caption_never_changes_itself(check: Callable[[str, str], list[str]]) -> None:
    for text in (
        CAPTION,
        PROMPT,
        "Left lung 2 nodules 1.5 cm; right hemidiaphragm raised; no fractures, no gas.",
    ):
        assert check(text, text) == []


def test_numbers_and_organs_have_one_name() -> None:
    assert said("3.5 cm, 3,5 cm and 35 mm").numbers == {"35 mm"}
    assert said("two cysts").numbers == said("2 cysts").numbers == {"2"}
    assert said("hepatic and renal").organs == said("liver and kidneys").organs == {"liver", "kidney"}
    assert said("T2 of L5").numbers == frozenset()
    assert said("left-sided renal cyst").sided == {("left", "kidney")}
    assert concludes("Findings suggestive of pneumonia.") == ["suggestive of", "pneumonia"]
    assert bare("Draw this image: An MRI.") == "An MRI."


def test_the_checks_of_each_step_say_what_is_wrong() -> None:
    assert described(DESCRIPTION) is None and fused(PROMPT, CAPTION, "CT") is None
    assert planned(PLAN, CAPTION, "CT") is None
    assert planned("<think></think> x", CAPTION, "CT") == planned("x", CAPTION, "CT") != None  # noqa: E711
    assert PROMPT.startswith(BEGINNING.format(modality="CT"))
    assert json.dumps(fused("x", CAPTION, "CT"))
