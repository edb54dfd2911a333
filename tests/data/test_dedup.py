# SPDX-License-Identifier: Apache-2.0
"""What is planted twice is found, and what is only alike by nature stays."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance

from monai_unimedvl.data import vectors
from monai_unimedvl.data.dedup import Decontaminate, Dedup, UniqueIds
from monai_unimedvl.data.near import near_words
from monai_unimedvl.data.prints import image_print, images_of, read_prints, word_print, write_prints
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject, pseudonym
from monai_unimedvl.data.step import Tally

pytest.importorskip("imagehash", reason="fingerprints need the extra 'data'")
pytest.importorskip("skimage", reason="the pictures are scikit-image's, of the extra 'demo'")


def png(picture: Image.Image, kind: str = "PNG", **how: int) -> ImageFile:
    """The picture as an embedded file."""
    stream = io.BytesIO()
    picture.save(stream, kind, **how)
    return ImageFile(f"a.{kind.lower()}", picture.height, picture.width, content=stream.getvalue())


def record(name: str, image: ImageFile, answer: str = "Colonic glands.", patient: str = "", **more) -> Record:
    """A record of one picture and one question."""
    said = (Message("human", "<image> What is shown?"), Message("gpt", answer))
    owner = pseudonym("p", patient, "key") if patient else ""
    fields = {"sub_task_type": "vqa", **more}
    return Record(
        id=name, main_task_type="image-to-text", modality="histopathology", dataset="d", licence="CC0-1.0",
        source="skimage", input_img=(image,), message=said, patient=owner, **fields,
    )  # fmt: skip


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    """Six tiles of stained tissue, all different, and an eye."""
    from skimage import data

    tissue = data.immunohistochemistry()
    tiles = [tissue[y : y + 256, x : x + 170] for y in (0, 256) for x in (0, 170, 340)]
    return [Image.fromarray(np.ascontiguousarray(t)) for t in tiles] + [
        Image.fromarray(data.retina()[::2, ::2])
    ]


def changed(picture: Image.Image) -> Iterator[tuple[str, ImageFile]]:
    """The same picture as others would pass it on."""
    smaller = picture.resize((picture.width * 2 // 3, picture.height * 2 // 3), Image.Resampling.BICUBIC)
    yield "resized", png(smaller)
    yield "compressed", png(picture, "JPEG", quality=35)
    yield "brighter", png(ImageEnhance.Brightness(picture).enhance(1.15))
    yield "darker", png(ImageEnhance.Brightness(picture).enhance(0.8))
    yield "all of it", png(ImageEnhance.Brightness(smaller).enhance(1.1), "JPEG", quality=50)


def codes(step, records: list[Record]) -> dict[str, str]:
    """id -> reject code, of what a step leaves out; what goes in comes out."""
    tally = Tally()
    items = list(step(records, tally))
    assert [item.id for item in items] == [r.id for r in records]
    assert tally.taken == len(records) == tally.kept + tally.rejected
    return {item.id: item.code for item in items if isinstance(item, Reject)}


def test_a_planted_duplicate_is_left_out_and_the_first_stays(pictures: list[Image.Image]) -> None:
    records = [record(f"r{n}", png(picture)) for n, picture in enumerate(pictures)]
    again = [record("same", png(pictures[2]))]
    alike = [record(name.replace(" ", "-"), image) for name, image in changed(pictures[6])]
    found = codes(Dedup(), [*records, *again, *alike])
    assert found == {"same": "duplicate", **{each.id: "near-duplicate" for each in alike}}
    assert codes(Dedup(near=False), [*records, *again, *alike]) == {"same": "duplicate"}


def test_other_words_another_task_and_another_slice_of_a_patient_are_no_duplicates(
    pictures: list[Image.Image],
) -> None:
    eye = pictures[6]
    shifted = eye.transform(eye.size, Image.Transform.AFFINE, (1, 0, 3, 0, 1, 0))
    records = [
        record("a", png(eye), patient="1"),
        record("b", png(eye), "An eye.", patient="1"),
        record("c", png(eye), patient="1", sub_task_type="caption"),
        record("next-slice", png(shifted), patient="1"),
    ]
    assert codes(Dedup(), records) == {}
    assert codes(Dedup(), [records[0], replace(records[3], patient="")]) == {"next-slice": "near-duplicate"}


def test_long_texts_are_alike_where_a_word_differs_and_short_ones_only_where_equal() -> None:
    long = " ".join(
        f"finding {n} in segment {n + 7} is unchanged since the last examination." for n in range(9)
    )
    texts = (long, long.replace("finding 8", "nodule 8"), "left lung", "right lung", "x " * 40)
    prints = [word_print(text) for text in texts]
    assert near_words(prints).tolist() == [[0, 1]]
    assert word_print("Left  LUNG. <image>").words == prints[2].words


def test_a_planted_benchmark_picture_is_left_out_however_it_was_changed(
    pictures: list[Image.Image], tmp_path: Path
) -> None:
    questions = (
        "Is there any evidence of metastatic disease in the upper lobe of the left lung on this image?"
    )
    rows = [image_print(png(pictures[6])), image_print(png(pictures[0])), word_print(questions)]
    assert write_prints(rows, tmp_path / "bench.jsonl", "vqa-test") == 3
    assert {name for name, _ in read_prints(tmp_path / "bench.jsonl")} == {"vqa-test"}
    step = Decontaminate(against=[str(tmp_path / "bench.jsonl")])
    clean = [record(f"r{n}", png(picture)) for n, picture in enumerate(pictures[1:6])]
    planted = [record(name.replace(" ", "-"), image) for name, image in changed(pictures[6])]
    asked = record("asked", png(pictures[3]), questions)
    words = replace(asked, message=(Message("human", questions), Message("gpt", "No.")), id="words")
    found = codes(step, [*clean, *planted, words])
    assert found == {**{each.id: "benchmark-image" for each in planted}, "words": "benchmark-words"}
    reasons = [item.reason for item in step([planted[0]]) if isinstance(item, Reject)]
    assert reasons == ["a picture of the benchmark vqa-test, or very like it."]


def test_a_model_sees_what_hashes_do_not(
    pictures: list[Image.Image], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("faiss", reason="needs the extra 'near'")

    class Colours:
        """A dual encoder that looks at mean colours alone, as a turned picture keeps them."""

        name, device = "colours", "cpu"
        model = SimpleNamespace(get_image_features=lambda pixel_values: pixel_values.mean((-2, -1)) - 128)

        @staticmethod
        def processor(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
            pixels = np.asarray(images.convert("RGB"), np.float32)
            return {"pixel_values": torch.from_numpy(pixels).movedim(-1, 0)[None]}

    monkeypatch.setattr(vectors, "encoder", lambda folder: Colours)
    records = [record("eye", png(pictures[6])), record("tissue", png(pictures[0]))]
    turned = record("turned", png(pictures[6].transpose(Image.Transpose.ROTATE_90)))
    assert codes(Dedup(), [*records, turned]) == {}
    (tmp_path / "config.json").write_text("{}")
    step = Dedup(embedder=str(tmp_path), cosine=0.999)
    assert codes(step, [*records, turned]) == {"turned": "near-duplicate"} and codes(step, []) == {}
    with pytest.raises(ValueError, match="nowhere holds no config.json"):
        Dedup(embedder="nowhere")


def test_near_vectors_are_found_whole_and_by_cells(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("faiss", reason="needs the extra 'near'")
    draw = np.random.default_rng(0)
    some = draw.normal(size=(400, 16)).astype(np.float32)
    some[300] = some[7] + 0.01 * draw.normal(size=16)
    some /= np.linalg.norm(some, axis=1, keepdims=True)
    for flat in (1000, 100):
        monkeypatch.setattr(vectors, "FLAT", flat)
        assert vectors.near_vectors(some, 0.99).tolist() == [[7, 300]]


def test_a_list_that_is_none_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text('{"format": "unimedvl-prints 1", "name": "b"}\n{"words": 3, "a": 1}\n')
    with pytest.raises(ValueError, match=r"x\.jsonl:2 is no line"):
        list(read_prints(tmp_path / "x.jsonl"))
    with pytest.raises(ValueError, match="is no file, expected a list"):
        list(read_prints(tmp_path / "y.jsonl"))


def test_a_second_record_of_an_id_and_a_damaged_picture_are_rejected_in_their_place(
    pictures: list[Image.Image],
) -> None:
    records = [record("a", png(pictures[0])), record("a", png(pictures[1])), record("b", png(pictures[2]))]
    assert codes(UniqueIds(), records) == {"a": "duplicate-id"}
    broken = replace(png(pictures[0]), content=b"\x89PNG nothing")
    found = codes(
        Dedup(), [record("x", broken), records[0], record("y", broken), records[2], record("z", broken)]
    )
    assert found == dict.fromkeys("xyz", "image-damaged")


def test_limits_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="expected below 64 bits"):
        Dedup(distance=300)


def test_a_fingerprint_of_words_is_the_same_everywhere() -> None:
    words = word_print("An axial CT of the chest shows a small nodule in the right upper lobe.")
    assert words.minhash.startswith("c2c29514ca4461158525f7039b6e121d")  # datasketch 2.0.0, seed 1, affine32


def test_hashes_are_written_as_imagehash_writes_them(pictures: list[Image.Image]) -> None:
    import imagehash

    grey = pictures[0].convert("L")
    print_ = image_print(png(grey))
    assert print_.average == str(imagehash.average_hash(grey, 16))
    assert print_.dct == str(imagehash.phash(grey, 16))


def test_a_picture_and_its_print_do_not_depend_on_the_file_around_it(pictures: list[Image.Image]) -> None:
    first, second = png(pictures[0]), png(pictures[0], "TIFF")
    assert first.content != second.content and image_print(first) == image_print(second)
    assert images_of(record("a", first)) == (first,)
