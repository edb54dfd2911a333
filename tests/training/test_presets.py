# SPDX-License-Identifier: Apache-2.0
"""What the nano model is taught: neighbouring slices together, and pictures in contrasts of no scanner."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import Tensor

pytest.importorskip("nilearn", reason="the atlas corpus starts from nilearn's ICBM152 maps")
pytest.importorskip("skimage", reason="the atlas corpus needs scikit-image")

from monai_unimedvl import weights  # noqa: E402
from monai_unimedvl.data.atlas import AtlasDataset  # noqa: E402
from monai_unimedvl.data.atlas_runs import runs  # noqa: E402
from monai_unimedvl.data.atlas_tasks import QUESTIONS, TASKS  # noqa: E402
from monai_unimedvl.data.augment import OF_CONTRAST  # noqa: E402
from monai_unimedvl.data.mixture import Stream, drop_conditions  # noqa: E402
from monai_unimedvl.networks.autoencoder import PatchCodec  # noqa: E402
from monai_unimedvl.networks.unimedvl import UniMedVL, nano  # noqa: E402
from monai_unimedvl.sequence import Canvas, Turn, View  # noqa: E402
from monai_unimedvl.tokenizer import Tokenizer  # noqa: E402
from monai_unimedvl.training.presets import (  # noqa: E402
    EDITED_TOGETHER,
    LENGTHS,
    RARE,
    SHARES,
    atlas_streams,
    corpus,
    edit_groups,
    nano_mixture,
    nano_training,
)  # fmt: skip


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> AtlasDataset:
    """Of the sources that every installation has."""
    return AtlasDataset(tmp_path_factory.mktemp("empty"), "train", tasks=TASKS, progress=False)


def read(stream: Stream, index: int, seed: int) -> list[Turn]:
    return stream.read(index, torch.Generator().manual_seed(seed))  # type: ignore[return-value]


def test_every_group_is_of_one_task_and_volume_with_even_gaps(dataset: AtlasDataset) -> None:
    groups = edit_groups(dataset)
    assert len(groups) > 100
    for group in groups[::7]:
        entries = [dataset.entries[i] for i in group]
        assert len(entries) in (2, 3) and entries[0].task in EDITED_TOGETHER
        assert len({(e.task, e.picture.source, e.picture.plane) for e in entries}) == 1
        places = [e.picture.position for e in entries]
        assert {b - a for a, b in zip(places, places[1:], strict=False)} in ({2.0}, {4.0})


def test_slices_of_a_group_are_drawn_together_each_from_its_own(dataset: AtlasDataset) -> None:
    tokenizer = Tokenizer.train(corpus(dataset)[::40], 300)
    mixture = nano_mixture(dataset, tokenizer, budget=2000)
    stream = next(stream for stream in mixture.streams if stream.name == "edit-group")
    turns = read(stream, 0, 1)
    shown = [part for part in turns[0].parts if isinstance(part, Tensor)]
    assert len(shown) == len(turns[1].parts) >= 2 and isinstance(turns[0].parts[-1], str)
    canvases = [s for s in mixture.to_segments(turns, draw=True) if isinstance(s, Canvas)]
    drawn = [canvas for canvas in canvases if canvas.noisy]
    assert [canvas.joined for canvas in drawn] == [False, *[True] * (len(drawn) - 1)]
    assert len(canvases) == 2 * len(drawn)
    assert "edit-group" not in {stream.name for stream in atlas_streams(dataset)}


def test_a_recoloured_picture_is_not_asked_for_its_contrast(dataset: AtlasDataset) -> None:
    stream = next(stream for stream in atlas_streams(dataset) if stream.name == "vqa")
    words = {form for key in OF_CONTRAST for form in QUESTIONS[key]}
    asked = [
        any(part in words for turn in read(stream, 0, seed) for part in turn.parts if isinstance(part, str))
        for seed in range(40)
    ]
    assert any(asked) and not all(asked)


def test_runs_of_slices_are_asked_about_together_some_without_what_repeats(dataset: AtlasDataset) -> None:
    tokenizer = Tokenizer.train(corpus(dataset)[::40], 300)
    mixture = nano_mixture(dataset, tokenizer, budget=2000, shares=SHARES)
    stream = next(stream for stream in mixture.streams if stream.name == "slices")
    counts, generator = set(), torch.Generator().manual_seed(0)
    read_share = []
    for index in torch.randperm(stream.length, generator=generator)[:40].tolist():
        turns = read(stream, index, index)
        shown = [part for part in turns[0].parts if isinstance(part, Tensor)]
        counts.add(len(shown))
        assert all(isinstance(part, str) for turn in turns[1:] for part in turn.parts)
        found = drop_conditions(mixture.to_segments(turns), stream.dropout, generator)
        views = [segment for segment in found if isinstance(segment, View)]
        read_share.append(sum(view.tokens for view in views) / sum(len(view.patches) for view in views))
    assert counts == set(LENGTHS) and min(read_share) < 0.46 and max(read_share) == 1


def test_runs_of_slices_are_of_the_section_of_the_dataset(tmp_path: Path) -> None:
    held_out = AtlasDataset(tmp_path, "val", tasks=("vqa",), progress=False)
    streams = atlas_streams(held_out, grouped=True, shares={"vqa": 0.5, "slices": 0.5})
    stream = next(stream for stream in streams if stream.name == "slices")
    found = [run for n in LENGTHS for run in runs(held_out.pictures, ["val"], length=n)]
    assert stream.length == len(found) > 0


def test_rare_colour_pictures_come_oftener_in_super_resolution_and_the_others_once(
    dataset: AtlasDataset,
) -> None:
    stream = next(stream for stream in atlas_streams(dataset) if stream.name == "sr4")
    order = stream.order(torch.Generator().manual_seed(0))  # type: ignore[misc]
    assert len(order) == stream.length > len(order.unique())
    found = [entry for entry in dataset.entries if entry.task == "sr4"]
    for index, times in zip(*order.unique(return_counts=True), strict=True):
        assert int(times) == RARE.get(found[int(index)].picture.modality, 1)


def test_groups_add_no_word_to_the_tokenizer(dataset: AtlasDataset, tmp_path: Path) -> None:
    without = AtlasDataset(tmp_path, "train", progress=False)
    assert corpus(dataset) == corpus(without) and set(SHARES) - set(TASKS) == {"edit-group", "slices"}


def test_training_goes_on_from_weights_and_hides_most_patches_of_a_picture(tmp_path: Path) -> None:
    """As the bundle's pretrain.json says: the encoder does not learn beside the rest."""
    from monai_unimedvl.bundle import models
    from monai_unimedvl.training.module import UniMedVLModule
    from monai_unimedvl.weights import load

    folder = models("unimedvl_nano")
    said = json.loads((folder.parent / "configs" / "pretrain.json").read_text())
    training = nano_training(tmp_path, start=folder, budget=1000, progress=False)
    before = load(folder)[0].state_dict()
    assert all(value.equal(before[name]) for name, value in training.network.state_dict().items())
    module = UniMedVLModule(training.network, training.tokenizer.marks, frozen=said["frozen"])
    asleep = {name.split(".")[0] for name, p in module.network.named_parameters() if not p.requires_grad}
    assert asleep == {"vision"}
    assert {"vqa", "slices", "edit-group"} <= {stream.name for stream in training.mixture.streams}
    hidden = []
    for _ in range(20):
        pack = training.mixture.next_pack()
        for sample, origin in zip(pack.samples, pack.origins, strict=True):
            views = [segment for segment in sample if isinstance(segment, View)]
            if origin.startswith(("vqa/", "caption/")):
                assert all(view.kept is not None for view in views)
                hidden += [view.tokens for view in views]
    assert len(set(hidden)) > 5


def test_a_leg_of_drawing_leaves_the_reading_side_alone(tmp_path: Path) -> None:
    """As the bundle's pretrain_drawing.json says: what reads does not learn, nothing is asked."""
    from monai_unimedvl.bundle import models
    from monai_unimedvl.training.module import UniMedVLModule
    from monai_unimedvl.training.parts import part_of

    folder = models("unimedvl_nano")
    overlay = json.loads((folder.parent / "configs" / "pretrain_drawing.json").read_text())
    training = nano_training(tmp_path, start=folder, leg=overlay["leg"], budget=1000, progress=False)
    module = UniMedVLModule(training.network, training.tokenizer.marks, frozen=overlay["frozen"])
    learning = {part_of(name) for name, p in module.network.named_parameters() if p.requires_grad}
    assert learning == {"generation", "heads"}
    assert not training.network.decoder.embed.weight.requires_grad
    names = {stream.name for stream in training.mixture.streams}
    assert "edit-group" in names and not {"vqa", "slices", "caption"} & names


def test_strokes_are_added_to_weights_that_have_none_and_change_nothing_yet(tmp_path: Path) -> None:
    """As the bundle's pretrain_drawing.json says: they are what a leg of drawing begins with."""
    torch.manual_seed(0)
    codec = PatchCodec.fit(torch.rand(4, 3, 64, 64) * 2 - 1, patch=8, channels=96)
    tokenizer = Tokenizer.train(["MRI"], 300)
    plain = nano(codec, vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    weights.save(plain, tokenizer, tmp_path / "joint")

    def begun(folder: str, **more: int) -> UniMedVL:
        start = {"start": tmp_path / folder, "leg": "drawing", "progress": False}
        return nano_training(tmp_path, **start, **more).network  # type: ignore[arg-type]

    made, again = begun("joint", strokes=4, seed=1), begun("joint", strokes=4, seed=1)
    assert made.config == {**plain.config, "strokes": 4}
    names = {name for name, _ in made.named_parameters()} - {name for name, _ in plain.named_parameters()}
    assert names and all(name.startswith("strokes.") for name in names)
    for name, value in made.state_dict().items():
        assert value.equal(again.state_dict()[name])
        assert name.startswith("strokes.") or value.equal(plain.state_dict()[name])
    assert not made.strokes.steer.weight.any() and made.strokes.first.weight.requires_grad  # type: ignore[union-attr]
    weights.save(made, tokenizer, tmp_path / "drawing")
    assert begun("drawing").config == made.config == begun("drawing", strokes=4).config
    with pytest.raises(ValueError, match="strokes=5, expected 4, those of the weights"):
        begun("drawing", strokes=5)
    with pytest.raises(ValueError, match="start and vision_steps=3, expected one of them"):
        begun("drawing", vision_steps=3)


def test_a_leg_of_another_name_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="leg='writing', expected one of joint, drawing, words: use"):
        nano_training(tmp_path, leg="writing")
