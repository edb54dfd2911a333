# SPDX-License-Identifier: Apache-2.0
"""Readers' answers survive a closed tab, come back as JSON, and are summed up as the books say."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from PIL import Image

from monai_unimedvl.cli import main
from monai_unimedvl.data.agreement import DIMENSIONS, Review, agreement, icc, kappa, quality
from monai_unimedvl.data.boxes import outlined
from monai_unimedvl.data.files import write_records
from monai_unimedvl.data.record import ImageFile, Message, Record, pseudonym
from monai_unimedvl.data.review import read_form, read_review, sample, write_form, write_summary

pytest.importorskip("jinja2", reason="pages need the extra 'data'")
pytest.importorskip("sklearn", reason="agreement needs the extra 'data'")
NAMES = list(DIMENSIONS)
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)


def record(number: int, modality: str = "mri") -> Record:
    """A picture with words that would break a careless page."""
    stream = io.BytesIO()
    pixels = np.random.default_rng(number).integers(0, 255, (40, 48), np.uint8)
    Image.fromarray(pixels).save(stream, "PNG")
    said = (
        Message("human", "<image> What is <b>shown</b>?"),
        Message("gpt", '</script><script>boom()</script> & "so"'),
    )
    return Record(
        id=f"r{number}", main_task_type="image-to-text", sub_task_type="vqa", modality=modality, dataset="d",
        licence="CC0-1.0", source="s", input_img=(ImageFile("a.png", 40, 48, content=stream.getvalue()),),
        message=said, patient=pseudonym("p", f"patient {number}", "key"),
    )  # fmt: skip


def review(reader: str, form: str, *rows: list[float], **comments: str) -> Review:
    """Ratings in the order of the dimensions, one row a sample."""
    return Review(
        reader, form, {f"r{n}": dict(zip(NAMES, row, strict=False)) for n, row in enumerate(rows)}, comments
    )


def test_icc_and_kappa_are_those_of_the_books() -> None:
    judges = [[9, 2, 5, 8], [6, 1, 3, 2], [8, 4, 6, 8], [7, 1, 2, 6], [10, 5, 6, 9], [6, 2, 4, 7]]
    assert icc(np.array(judges, float)) == pytest.approx(0.29, abs=0.005)  # Shrout and Fleiss 1979, table 4
    assert icc(np.full((5, 3), 4.0)) is None and icc(np.zeros((1, 3))) is None
    assert icc(np.array([[1, 1], [3, 3], [5, 5]], float)) == pytest.approx(1.0)
    one = review("a", "f", *([1, n] for n in (0, 1, 2, 3, 4, 5)))
    far = review("b", "f", *([1, n] for n in (5, 4, 3, 2, 1, 0)))
    assert kappa([one, replace(one, reader="b")], "factual accuracy") == pytest.approx(1.0)
    assert kappa([one, far], "factual accuracy") == pytest.approx(-1.0)
    assert kappa([one, far], "modality match") is None, "nothing varies"
    near = review("c", "f", *([1, n] for n in (1, 1, 2, 3, 4, 4)))
    assert 0.8 < kappa([one, near], "factual accuracy") < 1


def test_quality_scales_every_rating_to_one_and_leaves_out_what_does_not_apply() -> None:
    full = review("a", "f", [1, 5, 5, 5, 5, 5, 5])
    assert quality([full]) == 1.0
    half = review("b", "f", [0.5, 5], [1, 2.0])
    assert quality([half]) == pytest.approx(((0.5 + 1) / 2 + (1 + 0.4) / 2) / 2)
    found = agreement([full, replace(full, reader="c", ratings={"r0": {"modality match": 0.5}})])
    assert found["quality"] == pytest.approx(0.75) and not found["passes"]
    assert agreement([full])["passes"] and agreement([full])["dimensions"][0]["kappa"] is None
    with pytest.raises(ValueError, match="hold no rating"):
        agreement([replace(full, ratings={})])
    with pytest.raises(ValueError, match="two reviews are by 'a'"):
        agreement([full, full])
    with pytest.raises(ValueError, match="different forms"):
        agreement([full, replace(full, reader="z", form="g")])


def test_a_sample_is_shared_out_among_the_modalities_and_the_same_every_time() -> None:
    records = [record(n) for n in range(40)] + [record(n, "ct") for n in range(100, 104)]
    chosen = sample(records, 12)
    assert Counter(each.modality for each in chosen) == {"mri": 8, "ct": 4}
    assert chosen == sample(reversed(records), 12) != sample(records, 12, seed=1)
    marked = [
        replace(each, facts={"review": True}) if each.id in ("r7", "r102") else each for each in records
    ]
    assert {each.id for each in sample(marked, 12)} == {"r7", "r102"}
    with pytest.raises(ValueError, match="by='age'"):
        sample(records, 3, by="age")
    with pytest.raises(ValueError, match="no record to review"):
        sample([], 3)


def test_the_form_names_no_patient_and_words_stay_words(tmp_path: Path) -> None:
    form = write_form([record(0), record(1)], tmp_path / "form.html", title="A & B")
    page = (tmp_path / "form.html").read_text("utf8")
    assert "p-" + record(0).patient[2:] not in page
    assert "<script>boom" not in page and page.count("<script") == 2 and "<b>shown" not in page
    assert "http://" not in page and "https://" not in page, "it needs no network"
    told = read_form(tmp_path / "form.html")
    assert told["form"] == form and told["items"][0]["words"][1][1].startswith("</script>")
    assert told["items"][0]["words"][0][1] == "What is <b>shown</b>?"
    with pytest.raises(ValueError, match=r"x\.html is no form"):
        read_form(tmp_path / "x.html")


def boxed() -> Record:
    """A picture of 40 x 48 with two regions of one label, and words that name one of them and one more."""
    nodes = [{"label": "<b>node", "box": edges} for edges in ([6, 4, 18, 20], [0, 0, 9, 8])]
    said = (
        Message("human", "<image> What is at <box>(125,100),(375,500)</box>?"),
        Message("gpt", "A node, above <box>(500,500),(1000,1000)</box>."),
    )
    return replace(record(0), facts={"boxes": nodes}, message=said)


def test_regions_are_boxes_over_the_picture_that_can_be_taken_off(tmp_path: Path) -> None:
    found = outlined(boxed())
    assert found is not None and outlined(record(0)) is None
    labels = [(row["label"], row["count"]) for row in found["labels"]]
    assert labels == [("<b>node", 2), ("named in the words", 1)], "a box that is known is not drawn twice"
    drawing = ElementTree.fromstring(base64.b64decode(found["address"].split(",")[1]))
    assert drawing.get("viewBox") == "0 0 48 40", "in pixels of the record, whatever size it is shown in"
    name = "{http://www.w3.org/2000/svg}rect"
    boxes = [[float(box.get(key, "")) for key in ("x", "y", "width", "height")] for box in drawing.iter(name)]
    assert boxes[::2] == boxes[1::2] == [[6, 4, 12, 16], [0, 0, 9, 8], [24, 20, 24, 20]]
    write_form([boxed(), record(1)], tmp_path / "form.html")
    page = (tmp_path / "form.html").read_text("utf8")
    assert page.count('class="boxes"') == 1 and "<b>node" not in page.replace("\\u003c", "")
    assert "&lt;b&gt;node, 2 boxes" in page


def test_boxes_at_the_edge_and_points_are_seen() -> None:
    points = [{"label": "p", "box": [48, 40, 48, 40]}, {"label": "p", "box": [3, 3, 3, 3]}]
    found = outlined(replace(record(0), facts={"boxes": points}))
    assert found is not None
    drawing = ElementTree.fromstring(base64.b64decode(found["address"].split(",")[1]))
    for box in drawing.iter("{http://www.w3.org/2000/svg}rect"):
        x, y, width, height = (float(box.get(key, "")) for key in ("x", "y", "width", "height"))
        assert min(x, y) >= 0 and x + width <= 48 and y + height <= 40 and min(width, height) > 0.5


def exported(path: Path, **changes: Any) -> Path:
    """A review as the form writes it."""
    told = {
        "format": "unimedvl-review 1",
        "form": "f",
        "reader": "Ada",
        "ratings": {"r0": {NAMES[1]: 4}},
        "comments": {},
    }
    path.write_text(json.dumps({**told, **changes}))
    return path


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"reader": " "}, "no review with a reader's name"),
        ({"format": "other"}, "no review with a reader's name"),
        ({"ratings": [3]}, "is no review, expected what the form exports"),
        ({"ratings": {"r0": {"factual accuracy": 6}}}, "accuracy' with 6, expected 0 to 5 in steps of 1"),
        ({"ratings": {"r0": {"modality match": 0.3}}}, "rates 'modality match' with 0.3, expected 0 to 1"),
        ({"ratings": {"r0": {"beauty": 1}}}, "rates 'beauty'"),
        ({"ratings": {"r0": {"factual accuracy": "4"}}}, "with '4'"),
    ],
)  # fmt: skip
def test_answers_that_the_form_cannot_give_are_refused(tmp_path: Path, changes: dict, said: str) -> None:
    assert read_review(exported(tmp_path / "good.json")).ratings == {"r0": {NAMES[1]: 4}}
    with pytest.raises(ValueError, match=said):
        read_review(exported(tmp_path / "bad.json", **changes))


def test_the_command_writes_form_and_summary(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("pyarrow", reason="Parquet needs the extra 'data'")
    write_records([record(n) for n in range(3)], tmp_path / "records.parquet")
    form = str(tmp_path / "form.html")
    assert main(["data", "review", "form", str(tmp_path / "records.parquet"), "--out", form]) == 0
    id = read_form(form)["form"]
    assert f"3 samples, form {id}" in capsys.readouterr().out
    good = {f"r{n}": dict.fromkeys(NAMES, 5) | {NAMES[0]: 1} for n in range(3)}
    poor = {**good, "r1": {**good["r1"], NAMES[1]: 1}}
    files = []
    for name, rated in (("Ada", good), ("Bo", poor)):
        told = {"reader": name, "form": id, "ratings": rated, "comments": {"r1": f"<i>{name}</i> doubts"}}
        files.append(exported(tmp_path / f"{name}.json", **told))
    summary = str(tmp_path / "summary.html")
    assert main(["data", "review", "summary", form, *map(str, files), "--out", summary]) == 0
    said = capsys.readouterr().out
    assert "Q-bar 0.981: passes the mark of 0.85, 2 readers" in said and "factual accuracy: mean 4.33" in said
    page = Path(summary).read_text("utf8")
    assert page.index("r1</span>") < page.index("r0</span>"), "the lowest first"
    assert "readers differ by 0.8" in page and "&lt;i&gt;Ada" in page and "data:image/png" in page
    exported(files[0], form="other", ratings=good)
    assert main(["data", "review", "summary", form, str(files[0]), "--out", summary]) == 2
    assert "is of another form" in capsys.readouterr().err


@pytest.fixture
def page() -> Iterator[Any]:
    """A page of headless Chromium that keeps its store while the browser lives."""
    tools = pytest.importorskip("playwright.sync_api", reason="needs the extra 'test'")
    if CHROMIUM is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with tools.sync_playwright() as started:
        browser = started.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"], timeout=120_000)
        context = browser.new_context(accept_downloads=True)
        context.set_default_timeout(60_000)
        yield context.new_page()
        browser.close()


@pytest.mark.browser
def test_the_form_keeps_what_is_typed_and_gives_it_back(page: Any, tmp_path: Path) -> None:
    write_form([record(n) for n in range(3)], tmp_path / "form.html", title="Reading")
    address, context, broken = (tmp_path / "form.html").as_uri(), page.context, []
    page.on("pageerror", lambda error: broken.append(str(error)))
    page.goto(address)

    def rate(page: Any, item: int, dimension: str, value: str) -> None:
        page.locator(f"#item-{item} fieldset[data-dimension='{dimension}'] input[value='{value}']").check()

    for dimension in NAMES:
        rate(page, 1, dimension, "1" if dimension == "modality match" else "4")
    rate(page, 2, "modality match", "0.5")
    rate(page, 2, "planning coherence", "none")
    page.locator("#item-2 textarea").fill('side "wrong" <b> ü')
    assert page.locator("#count").inner_text() == "1 of 3 done"
    page.locator("#export").click()
    assert "Give your name first" in page.locator("#warning").inner_text()
    page.locator("#reader").fill("Dr. Ada L.")
    page.wait_for_timeout(1000)  # Chromium stores in another process, which a busy core keeps waiting
    page.reload()
    assert (
        page.locator("#reader").input_value() == "Dr. Ada L."
        and page.locator("#count").inner_text() == "1 of 3 done"
    )
    page.close()

    again = context.new_page()  # the tab was closed
    again.goto(address)
    assert again.locator("#item-2 textarea").input_value() == 'side "wrong" <b> ü'
    with again.expect_download() as download:
        again.locator("#export").click()
    path = tmp_path / download.value.suggested_filename
    download.value.save_as(path)
    said = read_review(path)
    assert said.reader == "Dr. Ada L." and said.form == read_form(tmp_path / "form.html")["form"]
    items = {
        item["id"]: said.ratings.get(item["id"], {}) for item in read_form(tmp_path / "form.html")["items"]
    }
    assert sorted(map(len, items.values())) == [0, 1, 7]
    assert list(said.comments.values()) == ['side "wrong" <b> ü']

    fresh = context.browser.new_context().new_page()  # another machine
    fresh.goto(address)
    assert fresh.locator("#count").inner_text() == "0 of 3 done"
    fresh.locator("#import").set_input_files(str(exported(tmp_path / "other.json")))
    fresh.wait_for_selector("#warning:not([hidden])")
    assert "no review of this form" in fresh.locator("#warning").inner_text()
    fresh.locator("#import").set_input_files(str(path))
    fresh.locator("#count", has_text="1 of 3 done").wait_for()  # its policy forbids eval
    assert fresh.locator(
        "#item-2 fieldset[data-dimension='planning coherence'] input[value=none]"
    ).is_checked()
    found = write_summary(tmp_path / "form.html", [said], tmp_path / "summary.html")
    assert found["readers"][0]["items"] == 2 and not broken


@pytest.mark.browser
def test_the_boxes_lie_on_the_picture_and_go_away(page: Any, tmp_path: Path) -> None:
    form = write_form([boxed(), record(1)], tmp_path / "form.html")
    page.goto((tmp_path / "form.html").as_uri())
    boxes, picture = page.locator("#item-1 img.boxes"), page.locator("#item-1 img[alt='given picture 1']")
    assert boxes.bounding_box() == picture.bounding_box() and boxes.evaluate("x => x.naturalWidth") == 48
    page.locator("#boxes").uncheck()
    assert not boxes.is_visible() and picture.is_visible()
    assert page.locator("#count").inner_text() == "0 of 2 done"
    told = Review("Ada", form, {"r0": {NAMES[1]: 4}}, {})
    write_summary(tmp_path / "form.html", [told], tmp_path / "summary.html")
    page.goto((tmp_path / "summary.html").as_uri())
    seen = page.locator("article .seen").first
    assert seen.locator("img").first.bounding_box() == seen.locator("img.boxes").bounding_box()
