# SPDX-License-Identifier: Apache-2.0
"""MONAI's engines over prompts and packs: what goes in, what is written, whose step it is."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from ignite.engine import Events
from monai.data import DataLoader, Dataset, MetaTensor
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.transforms import LoadImage
from PIL import Image
from sources import dicom, series
from tiny import MARKS, canvas, text, tiny_network, view
from torch import Tensor

from monai_unimedvl import provenance
from monai_unimedvl.data.mixture import Pack
from monai_unimedvl.inferers import Answer
from monai_unimedvl.training.engine import (
    AtSourceSized,
    ByRecipe,
    IterationUpdate,
    PreparePrompts,
    SaveResults,
    list_images,
)
from monai_unimedvl.training.objective import Objective


def pack(seed: int) -> Pack:
    samples = [
        [text(3, 4), view(2, 2, seed), text(5, 6, loss=True)],
        [text(7), canvas(2, 2, seed), canvas(2, 3, seed + 1, noisy=True)],
    ]
    return Pack(samples, ["a/0/0", "b/0/0"], 40, {})


def test_a_step_of_monais_trainer_is_a_step_of_the_objective() -> None:
    network, packs = tiny_network(), [pack(1), pack(5), pack(9)]
    bare, objective = deepcopy(network), Objective(text_weight=0.5)
    optimizer = torch.optim.AdamW(bare.parameters(), lr=1e-2)
    for n, batch in enumerate(packs):
        chance = torch.Generator().manual_seed(7 * 1_000_003 + n)
        optimizer.zero_grad()
        objective(bare, batch.samples, MARKS, chance).loss.backward()
        optimizer.step()
    seen: list[float] = []
    trainer = SupervisedTrainer(
        device="cpu", max_epochs=1, train_data_loader=packs, network=network, decollate=False,
        optimizer=torch.optim.AdamW(network.parameters(), lr=1e-2), loss_function=torch.nn.Identity(),
        iteration_update=IterationUpdate(MARKS, objective, seed=7),
    )  # fmt: skip
    ended = Events.ITERATION_COMPLETED
    trainer.add_event_handler(ended, lambda engine: seen.append(engine.state.output["loss"]))
    trainer.run()
    assert len(set(seen)) == 3
    for (name, mine), other in zip(network.named_parameters(), bare.parameters(), strict=True):
        assert torch.equal(mine, other), name


def test_prompts_have_the_picture_first_and_each_picture_may_have_its_own_text() -> None:
    images = torch.rand(2, 3, 8, 8)
    prompts, label = PreparePrompts("Which plane?")({"image": images, "label": [1, 2]})
    assert label == [1, 2] and [prompt[1] for prompt in prompts] == ["Which plane?"] * 2
    assert torch.equal(prompts[1][0], images[1]) and type(prompts[0][0]) is Tensor
    own, _ = PreparePrompts("Which plane?", key="question")({"image": images, "question": ["a", "b"]})
    assert [prompt[1] for prompt in own] == ["a", "b"]
    assert PreparePrompts("Draw.", image=None)({}) == ([["Draw."]], None)


def test_empty_words_and_wrong_pictures_are_refused() -> None:
    with pytest.raises(ValueError, match="text='  ', expected some words"):
        PreparePrompts("  ")
    with pytest.raises(ValueError, match=r"got shape \(3, 8, 8\) under 'image', expected pictures"):
        PreparePrompts("a")({"image": torch.rand(3, 8, 8)})
    with pytest.raises(ValueError, match="got NoneType under 'image'"):
        PreparePrompts("a")({})


def test_results_are_marked_and_never_overwrite_each_other(tmp_path: Path) -> None:
    for name in ("a.png", "a.bmp"):
        Image.new("L", (8, 8), len(name)).save(tmp_path / name)
    out = tmp_path / "out"

    class Said:
        seed = 4

        def __call__(self, prompts: list[Any], network: Any) -> list[Any]:
            return [Answer("axial", (), (), "end"), torch.rand(3, 8, 8), torch.rand(3, 8, 8)]

    files = [str(tmp_path / "a.png"), str(tmp_path / "a.png"), str(tmp_path / "a.bmp")]
    meta = {"filename_or_obj": files, "slice": torch.tensor([5, -1, -1])}
    images = MetaTensor(torch.rand(3, 3, 8, 8), meta=meta)
    handler = SaveResults(out, "made", weights="w" * 64)
    evaluator = SupervisedEvaluator(
        device="cpu", val_data_loader=[{"image": images}], network=torch.nn.Identity(), inferer=Said(),
        prepare_batch=PreparePrompts("Why?"), val_handlers=[handler], decollate=False,
    )  # fmt: skip
    for _ in range(2):  # a second run of the same engine writes the same names again
        evaluator.run()
        assert [path.name for path in handler.written] == ["a-005-made.json", "a-made.png", "a-made-2.png"]
    answer = json.loads((out / "a-005-made.json").read_text("utf8"))
    assert (answer["text"], answer["seed"], answer["slices"], answer["prompt"]) == ("axial", 4, [5], "Why?")
    inputs = [provenance.verify(out / name)["inputs"] for name in ("a-made.png", "a-made-2.png")]
    assert inputs == [[provenance.sha256(tmp_path / name)] for name in ("a.png", "a.bmp")]


@pytest.mark.parametrize("batch_size", [1, 2])
def test_what_was_drawn_of_a_file_comes_back_on_its_pixels_and_a_text_as_it_was(
    tmp_path: Path, batch_size: int
) -> None:
    pixels = [np.random.default_rng(n).integers(0, 256, (20, 30, 3)).astype(np.uint8) for n in range(2)]
    for n, values in enumerate(pixels):
        Image.fromarray(values).save(tmp_path / f"{n}.png")

    class Copies:
        seed = 0

        def __call__(self, prompts: list[Any], network: Any) -> list[Any]:
            assert all(prompt[0].shape == (3, 30, 30) for prompt in prompts), "padded to a square"
            return [prompt[0].as_subclass(Tensor) for prompt in prompts]

    reading = ByRecipe("image", "histopathology", field="square")
    (item,) = reading({"image": str(tmp_path / "0.png"), "more": 1})
    assert item["more"] == 1 and item["image"].meta["filename_or_obj"] == str(tmp_path / "0.png")
    assert item["image"].meta["slice"] == -1
    loader = DataLoader(Dataset(list_images(tmp_path), reading), batch_size=batch_size)
    evaluator = SupervisedEvaluator(
        device="cpu", val_data_loader=loader, network=torch.nn.Identity(), inferer=Copies(), decollate=False,
        prepare_batch=PreparePrompts("Copy."), postprocessing=AtSourceSized("pred"),
        val_handlers=[SaveResults(tmp_path / "out", "copy", weights="w" * 64)],
    )  # fmt: skip
    evaluator.run()
    for n, values in enumerate(pixels):
        written = np.asarray(Image.open(tmp_path / "out" / f"{n}-copy.png"))
        assert written.shape == values.shape and np.abs(written.astype(int) - values).max() <= 1
    picture = [torch.rand(3, 8, 8), "Why?"]
    assert AtSourceSized("pred")({"pred": ["words"], "image": [picture]})["pred"] == ["words"]
    assert AtSourceSized("pred")({"pred": [picture[0]], "image": [["Draw."]]})["pred"][0] is picture[0]


def test_the_data_list_of_a_folder_is_its_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.nii.gz", "notes.txt"):
        (tmp_path / name).touch()
    (tmp_path / "empty").mkdir()
    assert [Path(row["image"]).name for row in list_images(tmp_path)] == ["a.nii.gz", "b.png"]
    assert list_images(tmp_path / "b.png") == [{"image": str(tmp_path / "b.png")}]
    assert [Path(row["image"]).name for row in list_images(tmp_path, volumes=True)] == ["a.nii.gz"]
    with pytest.raises(ValueError, match=r"holds no image \(0 other entries\), expected .png.*: add some"):
        list_images(tmp_path / "empty")
    with pytest.raises(ValueError, match=r"holds no volume \(1 other entries\), expected .nii"):
        list_images(tmp_path / "b.png", volumes=True)
    with pytest.raises(ValueError, match="does not exist, expected a folder"):
        list_images(tmp_path / "nowhere")


def test_what_is_left_out_of_a_folder_is_counted_and_not_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for name in ("a.png", "notes.pdf", "Doe.John", "letter", ".DS_Store"):
        (tmp_path / name).touch()
    for name in ("IM0001", "1.2.840.77", "DICOMDIR"):
        dicom(tmp_path / name)
    (tmp_path / "Jane Doe").mkdir()
    (tmp_path / "Jane Doe" / "b.png").touch()
    assert [Path(row["image"]).name for row in list_images(tmp_path)] == ["1.2.840.77", "IM0001", "a.png"]
    (record,) = caplog.records
    assert record.levelname == "WARNING"
    assert "5 of 8 entries are left out: 1 .pdf, 1 of other endings, 2 without ending, 1 fold" in caplog.text
    assert not any(name in record.getMessage().lower() for name in ("doe", "john", "letter", "notes"))
    caplog.clear()
    list_images(tmp_path / "IM0001")
    assert not caplog.records


def test_the_slices_of_a_series_are_one_volume(tmp_path: Path) -> None:
    series(tmp_path / "scan", 4)
    for path in (tmp_path / "scan").iterdir():
        path.rename(path.with_suffix(".dcm"))
    scan = str(tmp_path / "scan")
    for folder in (tmp_path / "scan", tmp_path):
        assert list_images(folder, volumes=True) == [{"image": scan}]
    assert len(list_images(scan)) == 4, "each a picture"
    volume = LoadImage(image_only=True, ensure_channel_first=True)(scan)
    assert volume.shape == (1, 32, 32, 4)
    (tmp_path / "scan" / "more.nii.gz").touch()
    assert [row["image"] for row in list_images(scan, volumes=True)] == [scan, f"{scan}/more.nii.gz"]
    dicom(tmp_path / "scan" / "other.dcm")
    for folder in (tmp_path / "scan", tmp_path):
        with pytest.raises(ValueError, match="holds 2 DICOM series, but one is expected: put each in"):
            list_images(folder, volumes=True)


def test_seeds_that_differ_by_prompt_are_not_claimed_as_one(tmp_path: Path) -> None:
    handler = SaveResults(tmp_path, "made", weights="w")
    engine = SimpleNamespace(
        state=SimpleNamespace(batch={}, output={"image": [["a"]], "pred": ["b"]}),
        inferer=SimpleNamespace(seed=[8]),
    )
    handler(engine)  # type: ignore[arg-type]
    assert json.loads((tmp_path / "made.json").read_text("utf8"))["seed"] == 8
