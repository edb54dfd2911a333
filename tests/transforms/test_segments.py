# SPDX-License-Identifier: Apache-2.0
"""Prompts, dialogues and records become the segments of the reference: what is read, what is drawn."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.testing import assert_close

from monai_unimedvl.networks.layers import unpatchify
from monai_unimedvl.sequence import Canvas, Segment, Text, Turn, View
from monai_unimedvl.transforms.geometry import FitToGrid
from monai_unimedvl.transforms.image import Rule
from monai_unimedvl.transforms.segments import ToSegments

VIEW, CANVAS = Rule(84, 28, 14), Rule(96, 32, 16)


class Letters:
    """One id a character."""

    def encode(self, text: str) -> Tensor:
        return torch.tensor([ord(c) for c in text], dtype=torch.long)


def segments_of(
    source: object, draw: bool = False, history: bool = False, **options: object
) -> list[Segment]:
    return ToSegments(Letters(), view=VIEW, canvas=CANVAS, **options)(source, draw=draw, history=history)


def kinds(segments: list[Segment]) -> str:
    """T text, t text with loss, V view, C clean canvas, N noisy canvas."""
    letters = ""
    for s in segments:
        if isinstance(s, Text):
            letters += "t" if s.loss else "T"
        else:
            letters += "V" if isinstance(s, View) else "N" if s.noisy else "C"
    return letters


@pytest.fixture
def image() -> Tensor:
    return torch.randint(0, 256, (3, 50, 70)) / 255.0


def test_neighbouring_slices_of_an_answer_are_drawn_together_on_request(image: Tensor) -> None:
    turns = [Turn("user", ["three slices"]), Turn("assistant", [image, image, "said", image])]
    alone, together = (segments_of(turns, together=flag) for flag in (False, True))
    assert kinds(alone) == kinds(together) == "TNNtN"
    assert [s.joined for s in together if isinstance(s, Canvas)] == [False, True, False]
    assert not any(s.joined for s in alone if isinstance(s, Canvas))
    kept = segments_of(turns, together=True, keep_drawn=True)
    assert kinds(kept) == "TNNCVCVtN"
    assert [s.given for s in kept if isinstance(s, Canvas)] == [True, True, False, False, True]


def test_a_question_about_an_image_has_a_view_and_words_in_order(image: Tensor) -> None:
    assert kinds(segments_of([image, "what?"])) == "VT"
    assert kinds(segments_of(["first", image, "second", image])) == "TVTV"
    assert segments_of(["hi"])[0].ids.tolist() == [104, 105]


def test_drawing_puts_a_clean_canvas_before_each_view(image: Tensor) -> None:
    assert kinds(segments_of([image, "stain it"], draw=True)) == "CVT"
    assert kinds(segments_of(["draw a brain"], draw=True)) == "T"


def test_a_dialogue_has_loss_on_answers_and_noise_on_drawings(image: Tensor) -> None:
    ask, answer = Turn("user", [image, "what?"]), Turn("assistant", ["a brain"])
    draw, drawn = Turn("user", ["stain it"]), Turn("assistant", [image])
    assert kinds(segments_of([ask, answer])) == "VTt"
    assert kinds(segments_of([ask, answer, draw, drawn])) == "CVTtTN"
    assert kinds(segments_of({"turns": [ask, answer], "id": "x"})) == "VTt"
    assert kinds(segments_of({"prompt": [image, "what?"]})) == "VT"


def test_later_parts_see_a_drawing_only_when_it_is_kept(image: Tensor) -> None:
    turns = [Turn("user", ["draw"]), Turn("assistant", [image, "here"]), Turn("assistant", [image])]
    assert kinds(segments_of(turns)) == "TNtN"
    kept = segments_of(turns, keep_drawn=True)
    assert kinds(kept) == "TNCVtN" and not kept[2].given
    assert torch.equal(kept[1].image, kept[2].image) and kept[1].grid == kept[2].grid


def test_what_the_assistant_drew_is_read_as_what_the_user_gave(image: Tensor) -> None:
    words = [Turn("user", ["draw"]), Turn("assistant", [image, "here"]), Turn("user", ["what is it?"])]
    scan = [Turn("user", [image]), *words, Turn("assistant", [image]), Turn("user", ["and this?"])]
    assert kinds(segments_of(words, history=True)) == "TVtT"
    assert kinds(segments_of(scan, history=True)) == "VTVtTVT"
    read = segments_of(scan, history=True, draw=True)
    assert kinds(read) == "CVTCVtTCVT"
    assert [s.given for s in read if isinstance(s, Canvas)] == [True, False, False]


def test_patches_and_grids_lead_back_to_the_image(image: Tensor) -> None:
    canvas, view = segments_of([image], draw=True)
    assert isinstance(canvas, Canvas) and isinstance(view, View)
    assert view.patches.shape == (view.grid[0] * view.grid[1], 14 * 14 * 3)
    back = unpatchify(view.patches, view.grid, 14)
    fitted = FitToGrid(84, 28, 14, limits=(0, 1))(image).as_subclass(Tensor)
    assert_close(back, (fitted - 0.5) / 0.5)
    assert canvas.image.shape == (3, canvas.grid[0] * 16, canvas.grid[1] * 16)
    assert float(canvas.image.min()) >= -1 and float(canvas.image.max()) <= 1


def test_an_image_of_the_right_size_keeps_its_pixels() -> None:
    image = torch.rand(3, 112, 112)
    rules = {"view": Rule(112, 112, 14), "canvas": Rule(112, 112, 16)}
    for fit in ("matched", "upstream"):
        source = image if fit == "matched" else (image * 255).round() / 255
        canvas, view = ToSegments(Letters(), **rules, fit=fit)([source], draw=True)
        assert torch.equal(canvas.image, (source - 0.5) / 0.5), fit
        assert torch.equal(unpatchify(view.patches, view.grid, 14), (source - 0.5) / 0.5), fit


def test_upstream_resamples_twice_in_bytes_when_drawing_and_once_when_asked(image: Tensor) -> None:
    byte = (image * 255).round().to(torch.uint8)
    once = FitToGrid(96, 32, 16)(byte).as_subclass(Tensor)
    twice = FitToGrid(84, 28, 14)(once).as_subclass(Tensor)
    direct = FitToGrid(84, 28, 14)(byte).as_subclass(Tensor)
    canvas, view = segments_of([image], draw=True, fit="upstream")
    (asked,) = segments_of([image], fit="upstream")
    assert torch.equal(canvas.image, (once / 255 - 0.5) / 0.5)
    assert torch.equal(unpatchify(view.patches, view.grid, 14), (twice / 255 - 0.5) / 0.5)
    assert torch.equal(unpatchify(asked.patches, asked.grid, 14), (direct / 255 - 0.5) / 0.5)
    assert not torch.equal(twice, direct)


def test_matched_gives_the_same_view_whether_drawing_or_asked(image: Tensor) -> None:
    _, drawing = segments_of([image], draw=True)
    (asked,) = segments_of([image])
    assert torch.equal(drawing.patches, asked.patches)


def test_segments_are_plain_float32_without_gradient(image: Tensor) -> None:
    from monai.data import MetaTensor

    (view,) = segments_of([MetaTensor(image.double())])
    assert type(view.patches) is Tensor and view.patches.dtype == torch.float32


@pytest.mark.parametrize("empty", [[], [""], ["", "  \n"], {"turns": []}, [Turn("user", [""])]])
def test_an_empty_prompt_is_refused(empty: object) -> None:
    with pytest.raises(
        ValueError, match=r"the prompt is empty, but some text or an image is expected: add one\."
    ):
        segments_of(empty)


def test_text_beyond_the_context_is_refused_with_its_count(image: Tensor) -> None:
    with pytest.raises(
        ValueError, match=r"needs 402 tokens \(402 of text, 0 of images\), but the context holds 100"
    ):
        segments_of(["x" * 400], max_tokens=100)
    assert segments_of(["x" * 98], max_tokens=100)
    view = segments_of([image])[0]
    tokens = view.grid[0] * view.grid[1] + 2
    with pytest.raises(ValueError, match=rf"needs {tokens + 3} tokens \(3 of text, {tokens} of images\)"):
        segments_of([image, "x"], max_tokens=tokens + 2)


@pytest.mark.parametrize(
    "image, message",
    [
        (
            torch.zeros(3, 32, 32, dtype=torch.uint8),
            r"part 1 of the prompt\) has type torch.uint8, but floats",
        ),
        (torch.zeros(1, 32, 32), r"has 1 channels, shape \(1, 32, 32\), but 3 are expected"),
        (torch.zeros(2, 32, 32), r"has 2 channels"),
        (torch.zeros(5, 32, 32), r"has 5 channels"),
        (torch.zeros(1, 3, 32, 32), r"has 4 dimensions, shape \(1, 3, 32, 32\), but a picture is 3-D"),
        (torch.zeros(3, 1, 1), r"has 1x1 pixels, but each side needs at least 8"),
        (torch.zeros(1).expand(3, 20_000, 20_000), r"20000x20000 pixels, but at most 20,000,000"),
        (torch.full((3, 32, 32), float("nan")), r"has 3072 pixels that are NaN or Inf"),
        (torch.full((3, 32, 32), -1.0), r"has values in \[-1, -1\], but \[0, 1\] is expected"),
        (torch.full((3, 32, 32), 255.0), r"has values in \[255, 255\], but \[0, 1\] is expected"),
    ],
)
def test_a_bad_image_is_refused(image: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segments_of([image, "what?"])


@pytest.mark.parametrize(
    "source, message",
    [
        ("what?", r"a str came as prompt, but a list of texts and images is expected"),
        ([3], r"a int came in a prompt, but texts and image tensors are expected"),
        ([Turn("user", ["a"]), "b"], r"turns and bare parts are mixed"),
        ({"image": 3}, r"keys \['image'\] came, but 'turns' or 'prompt' is expected"),
    ],
)
def test_what_is_no_prompt_is_refused(source: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        segments_of(source)


def test_an_unknown_fit_is_refused() -> None:
    with pytest.raises(ValueError, match=r"fit='best', expected 'matched' or 'upstream'"):
        ToSegments(Letters(), fit="best")
