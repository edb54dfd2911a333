# SPDX-License-Identifier: Apache-2.0
"""Tasks are made of real pictures: what is drawn fits what is asked, in the order that the model reads."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from monai_unimedvl.data.degrade import coloured, haematoxylin, labels_of, legend_of, lose_resolution, without
from monai_unimedvl.data.dialogue import dialogue
from monai_unimedvl.data.ingest.base import write_png
from monai_unimedvl.data.record import ImageFile, Message, Record, Reject
from monai_unimedvl.data.tasks import TASKS, Tasks

pytest.importorskip("skimage", reason="the pictures are scikit-image's, of the extra 'demo'")


def saved(root: Path, pixels: np.ndarray, folder: str = "images", **place: object) -> ImageFile:
    """A picture of the corpus."""
    name = write_png(np.ascontiguousarray(pixels), root / folder)
    return ImageFile(f"{folder}/{name}", pixels.shape[0], pixels.shape[1], place)


def record(root: Path, image: ImageFile, *, drawn: tuple[ImageFile, ...] = (), **more) -> Record:
    """A record without words, as ingest leaves it."""
    fields = {"modality": "mri", "facts": {}, **more}
    return Record(
        id="r", main_task_type="image", sub_task_type="image", dataset="d", licence="CC0-1.0", source="s",
        input_img=(image,), output_img=drawn, **fields,
    )  # fmt: skip


def made(root: Path, given: Record, *make: str, **more) -> list[Record]:
    """The records that a record gives; none is rejected."""
    items = list(Tasks(root=str(root), make=make or TASKS, **more)([given]))
    assert all(isinstance(item, Record) for item in items), items
    assert len({item.id for item in items}) == len(items)
    return items


def opened(root: Path, image: ImageFile) -> np.ndarray:
    """The pixels of a file."""
    return np.asarray(Image.open(root / image.path))


@pytest.fixture(scope="module")
def tissue() -> np.ndarray:
    """Colonic glands, DAB stained, (128, 128, 3)."""
    from skimage import data

    return np.ascontiguousarray(data.immunohistochemistry()[128:256, 128:256])


@pytest.fixture(scope="module")
def eye() -> np.ndarray:
    """A fundus photograph in grey, (176, 176)."""
    from skimage import data

    return np.asarray(Image.fromarray(data.retina()).convert("L").resize((176, 176)))


def test_a_mask_is_asked_for_in_colours_that_lead_back_to_its_labels(tmp_path: Path, eye: np.ndarray) -> None:
    label_map = np.zeros(eye.shape, np.uint8)
    label_map[40:80, 40:70], label_map[100:120, 90:130] = 1, 3
    facts = {
        "mask": {"path": saved(tmp_path, label_map, "masks").path, "labels": ["vessel", "drusen", "disc"]}
    }
    items = made(
        tmp_path, record(tmp_path, saved(tmp_path, eye), facts=facts), "segmentation", "mask-to-image"
    )
    whole, vessel, drusen, disc, back = items
    legend = whole.facts["legend"]
    assert legend == legend_of(["vessel", "drusen", "disc"]) and len(set(map(tuple, legend.values()))) == 3
    np.testing.assert_array_equal(labels_of(opened(tmp_path, whole.output_img[0]), legend), label_map)
    np.testing.assert_array_equal(
        labels_of(opened(tmp_path, disc.output_img[0]), disc.facts["legend"]), label_map == 3
    )
    assert disc.facts["legend"] == {"disc": legend["disc"]}, "a label keeps its colour"
    assert not opened(tmp_path, drusen.output_img[0]).any() and "no drusen" in drusen.message[1].value
    red, green, blue = legend["vessel"]
    assert f"vessel in ({red}, {green}, {blue})" in vessel.message[0].value + vessel.message[1].value
    assert (back.input_img, back.output_img) == (whole.output_img, whole.input_img)
    assert back.sub_task_type == "mask-to-image" and whole.main_task_type == "interleaved"
    assert whole.provenance["message"] == {"by": "template", "name": whole.provenance["message"]["name"]}


def test_the_order_of_segments_is_that_of_the_released_loaders(tmp_path: Path, eye: np.ndarray) -> None:
    label_map = np.zeros(eye.shape, np.uint8)
    label_map[80:92, 40:52] = 1
    facts = {"mask": {"path": saved(tmp_path, label_map, "masks").path, "labels": ["lesion"]}, "side": "left"}
    items = {i.sub_task_type: i for i in made(tmp_path, record(tmp_path, saved(tmp_path, eye), facts=facts))}
    assert set(items) == {"segmentation", "mask-to-image", "super-resolution", "counterfactual"}
    for task, item in items.items():
        asked, told = dialogue(item, tmp_path)
        assert [isinstance(part, str) for part in asked.parts] == [False, True]
        assert [isinstance(part, str) for part in told.parts] == (
            [False, True] if task == "counterfactual" else [True, False]
        )
    explained = items["counterfactual"].message[1].value
    assert "lesion on the left side" in explained and "0.5 %" in explained and "imulat" in explained
    assert items["counterfactual"].provenance["output_img"]["name"].startswith("simulated")
    imagined = items["counterfactual"]
    before = opened(tmp_path, imagined.input_img[0]).astype(int)
    after = opened(tmp_path, imagined.output_img[0]).astype(int)
    far = np.ones(before.shape, bool)
    far[72:100, 32:60] = False
    assert (before != after)[80:92, 40:52].any() and np.array_equal(before[far], after[far])


def test_resolution_is_lost_in_k_space_or_by_area_and_nothing_moves(eye: np.ndarray) -> None:
    for fourier in (True, False):
        poor = lose_resolution(eye, 4, fourier=fourier).astype(float)
        assert poor.shape == eye.shape and abs(poor.mean() - eye.mean()) < 1
        spectrum = np.abs(np.fft.fftshift(np.fft.fft2(poor)))
        middle = np.zeros(eye.shape, bool)
        middle[66:110, 66:110] = True
        assert spectrum[~middle].sum() < 0.2 * np.abs(np.fft.fftshift(np.fft.fft2(eye)))[~middle].sum()
        smooth = np.asarray(
            Image.fromarray(eye).resize((44, 44), Image.Resampling.BOX).resize((176, 176), 3), float
        )
        shifts = [np.corrcoef(np.roll(poor, s, 1).ravel(), smooth.ravel())[0, 1] for s in (-2, -1, 0, 1, 2)]
        assert int(np.argmax(shifts)) == 2, "the poor picture lies where the good one does"
    colour = np.stack([eye, eye[::-1], eye], -1)
    np.testing.assert_array_equal(
        lose_resolution(colour, 4, fourier=False)[..., 0], lose_resolution(eye, 4, fourier=False)
    )
    with pytest.raises(ValueError, match="24x176 pixels cannot lose 4 times"):
        lose_resolution(eye[:24], 4, fourier=True)


def test_tissue_is_stained_from_its_haematoxylin(tmp_path: Path, tissue: np.ndarray) -> None:
    only, amounts = haematoxylin(tissue)
    assert amounts["dab"] > 0.01 and amounts["haematoxylin"] > 0.01
    back = haematoxylin(only)[1]
    assert back["dab"] < 0.2 * amounts["dab"], "the brown is gone"
    given = record(tmp_path, saved(tmp_path, tissue), modality="histopathology", facts={"contrast": "IHC"})
    (item,) = made(tmp_path, given, "staining")
    assert "IHC" in item.message[0].value and "haematoxylin" in item.message[0].value
    np.testing.assert_array_equal(opened(tmp_path, item.output_img[0]), tissue)
    np.testing.assert_array_equal(opened(tmp_path, item.input_img[0]), only)
    with pytest.raises(ValueError, match="grey picture"):
        haematoxylin(tissue[..., 0])


def test_a_pair_is_translated_and_asked_about(tmp_path: Path, eye: np.ndarray) -> None:
    place = {"position_mm": [0.0, 0.0, 4.0], "spacing_mm": [1.0, 1.0]}
    t1, t2 = saved(tmp_path, eye, **place), saved(tmp_path, 255 - eye, **place)
    facts = {"pair": {"from": "T1", "to": "T2"}}
    given = record(tmp_path, t1, drawn=(t2,), facts=facts)
    items = made(tmp_path, given)
    by_task = {item.sub_task_type: item for item in items}
    assert set(by_task) == {"translation", "target-selection", "modality-identification", "direction"}
    translated = by_task["translation"]
    assert (translated.input_img, translated.output_img) == ((t1,), (t2,))
    chosen = by_task["target-selection"]
    assert chosen.input_img["AB".index(chosen.message[1].value) + 1] == t2 and len(chosen.input_img) == 3
    answers = [i.message[1].value for i in items if i.sub_task_type == "modality-identification"]
    assert answers == ["T1", "T2"]
    assert (
        by_task["direction"].message[1].value == "T1 to T2"
        and "T2 to T1" in by_task["direction"].message[0].value
    )
    assert made(tmp_path, given) == items and made(tmp_path, given, seed=5) != items
    for item in items:
        dialogue(item, tmp_path)


@pytest.mark.parametrize(
    "size, place, said",
    [
        ((170, 176), {}, "176x176 pixels and 170x176 pixels"),
        ((176, 176), {"spacing_mm": [1.0, 1.2]}, "176 pixels of 1 x 1 mm and 176x176 pixels of 1 x 1.2 mm"),
        ((176, 176), {"spacing_mm": [1.0, 1.0], "position_mm": [0.0, 0.0, 9.0]}, "5.0 mm away"),
    ],
)  # fmt: skip
def test_a_pair_that_does_not_lie_on_itself_is_rejected_with_the_numbers(
    tmp_path: Path, eye: np.ndarray, size: tuple[int, int], place: dict, said: str
) -> None:
    first = saved(tmp_path, eye, position_mm=[0.0, 0.0, 4.0], spacing_mm=[1.0, 1.0])
    second = saved(tmp_path, eye[: size[0]], **place)
    given = record(tmp_path, first, drawn=(second,), facts={"pair": {"from": "T1", "to": "T2"}})
    (reject,) = Tasks(root=str(tmp_path))([given])
    assert isinstance(reject, Reject) and reject.code == "geometry-differs" and said in reject.reason


def test_a_mask_of_other_size_costs_its_own_tasks_only(tmp_path: Path, eye: np.ndarray) -> None:
    mask = saved(tmp_path, np.ones((20, 30), np.uint8), "masks")
    given = record(tmp_path, saved(tmp_path, eye), facts={"mask": {"path": mask.path, "labels": ["vessel"]}})
    items = list(Tasks(root=str(tmp_path))([given]))
    rejects = [item for item in items if isinstance(item, Reject)]
    assert [reject.code for reject in rejects] == ["geometry-differs"]
    assert "the mask has 20x30 pixels, its image 176x176" in rejects[0].reason
    assert [item.sub_task_type for item in items if isinstance(item, Record)] == ["super-resolution"]


def test_a_region_is_filled_from_the_other_side_where_that_is_healthy(eye: np.ndarray) -> None:
    half = eye[:, :88]
    head = np.concatenate([half, half[:, ::-1]], 1)
    ill = head.copy()
    mask = np.zeros(head.shape, bool)
    mask[60:70, 20:30] = True
    ill[mask] = 255
    filled, how = without(ill, mask, mirror=True)
    assert how == "the tissue of the other side"
    assert np.abs(filled.astype(int) - head)[mask].mean() < 8 < np.abs(ill.astype(int) - head)[mask].mean()
    across = mask | mask[:, ::-1]
    assert without(ill, across, mirror=True)[1] == "what lies around it"


def test_words_go_on_and_what_gives_no_task_is_said(tmp_path: Path, eye: np.ndarray) -> None:
    said = record(tmp_path, saved(tmp_path, eye))
    told = Record(**{**said.__dict__, "message": (Message("human", "Why?"), Message("gpt", "So."))})
    assert list(Tasks(root=str(tmp_path))([told])) == [told]
    tiny = record(tmp_path, saved(tmp_path, eye[:20, :20]))
    (reject,) = Tasks(root=str(tmp_path), make=("super-resolution",))([tiny])
    assert reject.code == "no-task"
    assert list(Tasks(root=str(tmp_path), make=("super-resolution",), keep=True)([tiny])) == [tiny]
    for options, message in (({"make": ("draw",)}, "make has 'draw'"), ({"factor": 1}, "factor is 1")):
        with pytest.raises(ValueError, match=message):
            Tasks(root="", **options)


def test_forty_labels_have_forty_colours() -> None:
    legend = legend_of([f"region {n}" for n in range(40)])
    assert len(set(legend.values())) == 40 and (0, 0, 0) not in legend.values()
    label_map = np.arange(41, dtype=np.uint8)[None].repeat(2, 0)
    np.testing.assert_array_equal(labels_of(coloured(label_map, legend), legend), label_map)
    assert legend_of(["tumour"]) == {"tumour": (255, 60, 60)}, "as in the atlas"
