# SPDX-License-Identifier: Apache-2.0
"""/v1/images/... through OpenAI's own client: the images that the inferer draws, marked."""

from __future__ import annotations

import base64
import io
from typing import Any

import numpy as np
import openai
import pytest
from PIL import Image
from serve_support import png
from torch import Tensor

from monai_unimedvl import provenance
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer
from monai_unimedvl.provenance import to_picture
from monai_unimedvl.transforms.choosing import Choice, choose
from monai_unimedvl.transforms.geometry import put_back


def pixels(content: bytes) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))


def given(images: Any) -> list[bytes]:
    return [base64.b64decode(one.b64_json) for one in images.data]


def test_images_from_words_are_the_inferers_marked_and_each_with_the_next_seed(client, service, tmp_path):
    made = client.images.generate(
        prompt="axial", n=3, size="8x8", extra_body={"seed": 5, "steps": 3, "guidance": 1.5}
    )
    infer = ImageInferer(service.tokenizer, size=(8, 8), steps=3, guidance=Guidance(text=1.5), seed=[5, 6, 7])
    wanted = infer([["axial"]] * 3, service.network)
    for n, (content, image) in enumerate(zip(given(made), wanted, strict=True)):
        assert np.abs(pixels(content).astype(int) - np.asarray(to_picture(image)).astype(int)).max() <= 1
        (tmp_path / "image.png").write_bytes(content)
        assert provenance.examine(tmp_path / "image.png").case == "marked"
        mark = provenance.read_mark(tmp_path / "image.png")
        assert (mark["prompt"], mark["seed"], mark["steps"]) == ("axial", 5 + n, 3)
        assert made.data[n].provenance["synthetic"] is True


def test_an_edit_has_the_pixels_of_its_source(client, service, tmp_path):
    content = png(size=(30, 20))
    made = client.images.edit(image=("Doe^Jane.png", content, "image/png"), prompt="coronal")
    (tmp_path / "x.png").write_bytes(content)
    (picture,), _ = choose(tmp_path / "x.png", Choice(square=True))
    (drawn,) = ImageInferer(service.tokenizer, steps=2)([[picture.as_tensor(), "coronal"]], service.network)
    wanted = put_back(drawn, picture, until="SquarePixels").clamp(0, 1).as_subclass(Tensor)
    (content,) = given(made)
    assert pixels(content).shape == (20, 30, 3)
    assert np.abs(pixels(content).astype(int) - np.asarray(to_picture(wanted)).astype(int)).max() <= 1
    assert b"Doe" not in content


REFUSED = [
    ({"size": "9x8"}, "multiples of 4"),
    ({"size": "4096x4096"}, "up to 16"),
    ({"size": "big"}, "size"),
    ({"n": 9}, "n:"),
    ({"prompt": ""}, "prompt"),
    ({"prompt": "   "}, "empty"),
    ({"response_format": "url"}, "response_format"),
    ({"extra_body": {"steps": 500}}, "steps"),
    ({"quality": "hd"}, "quality"),
    ({"model": "dall-e-3"}, "not served here"),
]


@pytest.mark.parametrize("change, said", REFUSED, ids=[str(change) for change, _ in REFUSED])
def test_an_image_that_cannot_be_drawn_is_refused(client, change, said):
    with pytest.raises(openai.APIStatusError, match=said) as caught:
        client.images.generate(**{"prompt": "axial", **change})
    assert caught.value.status_code in (400, 404)


@pytest.mark.parametrize(
    "file, said",
    [(b"no image", "no image"), (b"", "no image"), (png()[:60], "image")],
    ids=["words", "nothing", "cut"],
)
def test_an_edit_of_what_is_no_image_is_refused(client, file, said):
    with pytest.raises(openai.BadRequestError, match=said):
        client.images.edit(image=("x.png", file, "image/png"), prompt="axial")


def test_one_bad_drawing_of_a_batch_does_not_spoil_the_others(service):
    good, bad, other = (service.worker.draw(p, service.editing) for p in (["axial"], [" "], ["plane"]))
    assert good.future.result(30).shape == other.future.result(30).shape
    with pytest.raises(ValueError, match="empty"):
        bad.future.result(30)
