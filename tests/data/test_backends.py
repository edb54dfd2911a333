# SPDX-License-Identifier: Apache-2.0
"""Models that judge and write: in a folder, behind an address, in a file; and the score made of them."""

from __future__ import annotations

import base64
import io
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from sources import png
from tiny_models import captioner, dual_encoder, text_encoder

from monai_unimedvl.data.align import Align, told
from monai_unimedvl.data.backends import Scorer, Writer, digest, open_scorer, open_writer
from monai_unimedvl.data.backends.http import Endpoint
from monai_unimedvl.data.backends.replay import Remembered
from monai_unimedvl.data.record import ImageFile, InvalidRecord, Message, Record, Reject
from monai_unimedvl.data.step import Stop, Tally

PICTURE = torch.linspace(0, 1, 3 * 20 * 24).view(3, 20, 24)


class Echo:
    """A writer and scorer that counts how often it is asked: texts fit by the words that they share."""

    name = "echo"

    def __init__(self, captions: list[str] | None = None) -> None:
        self.calls, self.captions = 0, captions or ["a scan"]

    def write(self, prompt: str, image: Any = None, *, count: int = 1, seed: int = 0) -> list[str]:
        self.calls += 1
        return [self.captions[n % len(self.captions)] for n in range(count)]

    def image_text(self, image: Any, texts: Any) -> list[float]:
        self.calls += 1
        return [min(1.0, len(text) / 40) for text in texts]

    def text_text(self, text: str, others: Any) -> list[float]:
        self.calls += 1
        first = set(text.lower().split())
        return [len(first & set(o.lower().split())) / len(first | set(o.lower().split())) for o in others]


# folders


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny random models."""
    here = tmp_path_factory.mktemp("models")
    return {
        "siglip": dual_encoder(here / "siglip"), "clip": dual_encoder(here / "clip", "clip"),
        "e5": text_encoder(here / "e5"), "llava": captioner(here / "llava"),
    }  # fmt: skip


@pytest.mark.parametrize("kind", ["siglip", "clip"])
def test_a_dual_encoder_scores_images_and_texts_in_0_to_1(folders: dict[str, Path], kind: str) -> None:
    scorer = open_scorer(f"folder:{folders[kind]}")
    assert isinstance(scorer, Scorer) and scorer.name == kind
    texts = ["an axial mri of the head", "the lung is clear"]
    scores = scorer.image_text(PICTURE, texts)
    assert len(scores) == 2 and all(0 <= score <= 1 for score in scores) and scores[0] != scores[1]
    assert scorer.image_text(PICTURE, texts[:1])[0] == pytest.approx(
        scores[0], abs=1e-5
    )  # alone as in a batch
    assert scorer.image_text(1 - PICTURE, texts) != scores
    same, other = scorer.text_text(texts[0], texts)
    assert same == pytest.approx(1, abs=1e-5) and other < same


def test_a_text_encoder_scores_texts_and_no_images(folders: dict[str, Path]) -> None:
    scorer = open_scorer(f"folder:{folders['e5']}")
    same, other = scorer.text_text("the lung is clear", ["the lung is clear", "an axial mri"])
    assert same == pytest.approx(1, abs=1e-5) and 0 <= other < same
    with pytest.raises(ValueError, match="e5 has no image tower"):
        scorer.image_text(PICTURE, ["x"])


def test_a_captioner_writes_the_same_under_a_seed(folders: dict[str, Path]) -> None:
    writer = open_writer(f"folder:{folders['llava']}", max_tokens=6)
    assert isinstance(writer, Writer) and writer.name == "llava"
    once, again = (writer.write("describe this image", PICTURE, count=3, seed=5) for _ in range(2))
    assert once == again and len(once) == 3 and len(set(once)) > 1
    assert writer.write("describe this image", PICTURE, count=3, seed=6) != once
    assert len(writer.write("what is this", None)) == 1


def test_a_place_without_a_model_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text('{"model_type": "siglip"}')
    for place, message in [
        ("model", "expected folder:PATH"), ("folder:", "expected folder:PATH"),
        (f"folder:{tmp_path / 'x'}", "holds no config.json"), (f"replay:{tmp_path / 'x'}", "is no file"),
        ("http://127.0.0.1/v1", "names no model"), ("http://example.com/v1#m", "expected https on the open"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            open_writer(place)
    with pytest.raises(ValueError, match="broken cannot be loaded"):
        open_scorer(f"folder:{tmp_path / 'broken'}").text_text("a", ["b"])


# an address


@pytest.fixture
def server() -> Iterator[Any]:
    """A server that notes what it is asked, and answers what `replies` say."""

    class Answers(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            made.asked.append((self.path, body, self.headers.get("Authorization")))
            code, content = made.replies.pop(0) if made.replies else made.usual(self.path, body)
            self.send_response(code)
            if code == 302:
                self.send_header("Location", "http://127.0.0.1:9/else")
            self.end_headers()
            self.wfile.write(content if isinstance(content, bytes) else json.dumps(content).encode())

        def log_message(self, *words: Any) -> None:
            pass

    class Made:
        asked: list[Any] = []
        replies: list[Any] = []

        @staticmethod
        def usual(path: str, body: dict[str, Any]) -> tuple[int, Any]:
            if path.endswith("embeddings"):
                rows = [{"index": n, "embedding": [len(text), 1.0]} for n, text in enumerate(body["input"])]
                return 200, {"data": rows[::-1]}
            return 200, {"choices": [{"message": {"content": f" seed {body['seed']} "}}]}

    made = Made()
    made.asked, made.replies = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    made.address = f"http://127.0.0.1:{server.server_port}/v1#m"
    yield made
    server.shutdown()
    server.server_close()


def test_an_endpoint_gets_the_image_and_a_seed_for_each_answer(server: Any, monkeypatch) -> None:
    monkeypatch.setenv("UNIMEDVL_API_KEY", "key")
    writer = open_writer(server.address, max_tokens=9)
    assert writer.write("Describe.", PICTURE, count=2, seed=3) == ["seed 3", "seed 4"]
    path, body, key = server.asked[0]
    assert (
        path == "/v1/chat/completions"
        and key == "Bearer key"
        and body["model"] == "m"
        and body["max_tokens"] == 9
    )
    image, text = body["messages"][0]["content"]
    content = base64.b64decode(image["image_url"]["url"].removeprefix("data:image/png;base64,"))
    assert Image.open(io.BytesIO(content)).size == (24, 20) and text["text"] == "Describe."
    same, other = open_scorer(server.address).text_text("abc", ["abd", "a" * 90])
    assert same == pytest.approx(1) and 0.5 < other < 1


def test_an_endpoint_is_asked_again_when_it_is_busy_and_not_when_it_refuses(server: Any) -> None:
    writer = Endpoint(server.address, pause=0.01)
    server.replies = [(503, {}), (429, {})]
    assert writer.write("x") == ["seed 0"] and len(server.asked) == 3
    for reply, message in [
        ((401, {}), "refused with 401"), ((200, b"<html>"), "answered no JSON"),
        ((200, []), "no JSON object"),
        ((302, {}), "refused with 302"),
    ]:  # fmt: skip
        server.replies = [reply]
        with pytest.raises(ValueError, match=message):
            writer.write("x")
    server.replies = [(200, {"choices": []})]
    with pytest.raises(InvalidRecord, match="gave no words"):
        writer.write("x")
    with pytest.raises(ValueError, match="cannot score an image"):
        writer.image_text(PICTURE, ["x"])
    with pytest.raises(ValueError, match="is silent"):
        Endpoint("http://127.0.0.1:9/v1#m", pause=0.001).write("x")


# a file


def test_answers_are_remembered_and_replayed_without_the_model(tmp_path: Path) -> None:
    model = Echo(["one", "two"])
    first = Remembered(tmp_path / "a.jsonl", model)
    said = (
        first.write("p", PICTURE, count=2),
        first.image_text(PICTURE, ["abc"]),
        first.text_text("a b", ["a"]),
    )
    again = Remembered(tmp_path / "a.jsonl", model)
    assert (
        again.write("p", PICTURE, count=2),
        again.image_text(PICTURE, ["abc"]),
        again.text_text("a b", ["a"]),
    ) == said
    assert model.calls == 3 and first.asked == 3 and again.asked == 0
    alone = Remembered(tmp_path / "a.jsonl")
    assert alone.name == "echo" and alone.write("p", PICTURE, count=2) == ["one", "two"]
    for asked in (
        lambda: alone.write("q"),
        lambda: alone.image_text(PICTURE, ["x"]),
        lambda: alone.text_text("x", []),
    ):
        with pytest.raises(InvalidRecord, match="holds no answer"):
            asked()


def test_a_line_that_was_cut_is_asked_again_and_another_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a.jsonl"
    model = Echo()
    Remembered(path, model).write("p")
    Remembered(path, model).write("q")
    path.write_bytes(path.read_bytes()[:-9])
    assert Remembered(path, model).write("q") == ["a scan"] and model.calls == 3
    assert len(path.read_text().splitlines()) == 3  # the cut one stays, and is no answer
    assert Remembered(path, model).write("q") and model.calls == 3
    path.write_text("nonsense\n" + path.read_text())
    with pytest.raises(ValueError, match="a.jsonl line 1 is no answer"):
        Remembered(path, model).write("q")


def test_an_image_is_known_by_its_pixels() -> None:
    assert digest(PICTURE) == digest(PICTURE.clone()) != digest(1 - PICTURE) and digest(None) == ""


# the score


@pytest.fixture
def many(tmp_path: Path) -> list[Record]:
    """Ten pairs with longer and longer words, a pair of images and a text."""
    png(tmp_path / "a.png", size=(32, 32))
    image = (ImageFile("a.png", 32, 32),)
    given = {
        "main_task_type": "x",
        "sub_task_type": "y",
        "modality": "ct",
        "dataset": "d",
        "licence": "MIT",
        "source": "s",
    }
    ask = Message("human", "<image> ?")
    pairs = [
        Record(id=f"r{n}", **given, input_img=image, message=(ask, Message("gpt", "w" * (3 * n + 1))))
        for n in range(10)
    ]  # fmt: skip
    text = Record(id="t", **given, message=(Message("human", "?"), Message("gpt", "x")))
    return [*pairs, Record(id="p", **given, input_img=image, output_img=image), text]


def aligned(tmp_path: Path, records: list[Record], model: Echo, **options: Any) -> tuple[list[Any], Tally]:
    step = Align(root=str(tmp_path), image_scorer="replay:x", **options)
    object.__setattr__(step, "models", (model, model, model))
    tally = Tally()
    return list(step(records, tally)), tally


def test_the_worse_half_is_left_out_and_what_is_no_pair_is_kept(tmp_path: Path, many: list[Record]) -> None:
    items, tally = aligned(tmp_path, many, Echo(["nothing"]))
    kept = [item.id for item in items if isinstance(item, Record)]
    assert kept == ["r5", "r6", "r7", "r8", "r9", "p", "t"] and (tally.taken, tally.rejected) == (12, 5)
    assert {item.code for item in items if isinstance(item, Reject)} == {"misaligned"}
    told_ = next(item for item in items if item.id == "r9").facts["alignment"]
    assert (
        told_["score"] == pytest.approx(0.5 * told_["s"] + told_["m"], abs=1e-4)
        and told_["cut"] <= told_["score"]
    )


def test_captions_weigh_half_and_the_nearest_counts(tmp_path: Path, many: list[Record]) -> None:
    near = replace(many[0], message=(Message("human", "?"), Message("gpt", "left lung tumour")))
    items, _ = aligned(tmp_path, [near], Echo(["a head", "left lung tumour", "x"]), quantile=0.0)
    known = items[0].facts["alignment"]
    assert known["s"] == 1 and known["m"] == 0.4 and known["score"] == 0.9
    assert "a head" not in str(items[0].message)  # captions serve the score alone


def test_groups_have_a_cut_of_their_own(tmp_path: Path, many: list[Record]) -> None:
    mixed = [replace(r, modality="mri" if n < 4 else "ct") for n, r in enumerate(many[:10])]
    items, _ = aligned(tmp_path, mixed, Echo(), per=("modality",))
    assert [item.id for item in items if isinstance(item, Record)] == ["r2", "r3", "r7", "r8", "r9"]


def test_a_model_that_is_not_there_stops_the_run(tmp_path: Path, many: list[Record]) -> None:
    step = Align(root=str(tmp_path), image_scorer="folder:/nowhere")
    with pytest.raises(Stop, match="holds no config.json"):
        list(step(many))
    for options in ({"quantile": 1.0}, {"captions": 0}, {"per": ("age",)}):
        with pytest.raises(ValueError, match="expected|has"):
            Align(image_scorer="replay:x", **options)


def test_a_run_that_was_killed_asks_nothing_twice(tmp_path: Path, many: list[Record], folders) -> None:
    options = {"image_scorer": f"folder:{folders['siglip']}", "captioner": f"folder:{folders['llava']}",
               "captions": 2, "memory": str(tmp_path / "m.jsonl"), "root": str(tmp_path)}  # fmt: skip
    few = [
        replace(one, message=(Message("human", "?"), Message("gpt", "the lung is clear"))) for one in many[:2]
    ]
    first = list(Align(**options)(few[:1]))
    size = (tmp_path / "m.jsonl").stat().st_size
    again = Align(**options)
    assert list(again(few[:1])) == first and (tmp_path / "m.jsonl").stat().st_size == size
    assert first[0].facts["alignment"]["s"] > 0


def test_the_words_are_the_answers_or_the_prompt(many: list[Record]) -> None:
    assert told(many[1]) == "wwww"
    drawn = replace(
        many[1], input_img=(), output_img=many[1].input_img, message=(Message("human", "Draw a CT."),)
    )
    assert told(drawn) == "Draw a CT."
