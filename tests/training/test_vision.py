# SPDX-License-Identifier: Apache-2.0
"""Pretraining of the vision encoder: it learns, it is reproducible, it touches nothing else."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from monai_unimedvl import AtlasDataset
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, nano
from monai_unimedvl.training import vision
from monai_unimedvl.training.vision import MAPS, UNKNOWN, Quiz, _moved, pretrain_vision, seeded


@pytest.fixture(scope="module")
def lessons() -> AtlasDataset:
    """Questions about the sources that every installation has."""
    return AtlasDataset(section="train", tasks=["vqa"], permissive_only=True, progress=False)


def small() -> UniMedVL:
    """A nano network of one layer."""
    torch.manual_seed(0)
    return nano(PatchCodec(8, 4), vocab_size=32, hidden_size=64, num_layers=1)


def test_a_few_steps_lower_the_loss_and_change_the_encoder_only(lessons: AtlasDataset) -> None:
    network = small()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    losses = pretrain_vision(network, lessons, steps=12, batch=16)
    assert sum(losses[-3:]) < 0.9 * sum(losses[:3])
    changed = {
        name.split(".")[0] for name, value in network.state_dict().items() if not value.equal(before[name])
    }
    assert changed == {"vision"}


def test_the_same_seed_gives_the_same_encoder(lessons: AtlasDataset) -> None:
    once, twice = small(), small()
    first = pretrain_vision(once, lessons, steps=2, batch=8, seed=3, progress=False)
    torch.manual_seed(99)  # the caller's chance is of no account
    second = pretrain_vision(twice, lessons, steps=2, batch=8, seed=3, progress=False)
    assert first == second
    assert torch.equal(once.vision.patch.weight, twice.vision.patch.weight)


def test_pretraining_goes_on_after_a_kill_and_ends_with_the_same_weights(
    lessons: AtlasDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vision, "EVERY", 2)
    run = {"steps": 7, "batch": 8, "seed": 3, "progress": False}
    whole, killed, resumed = small(), small(), small()
    wanted = pretrain_vision(whole, lessons, **run)
    keep = vision._keep

    def kill(folder: Path, state: dict) -> None:
        keep(folder, state)
        if len(state["losses"]) == 4:
            raise KeyboardInterrupt

    monkeypatch.setattr(vision, "_keep", kill)
    with pytest.raises(KeyboardInterrupt):
        pretrain_vision(killed, lessons, **run, folder=tmp_path / "vision")
    monkeypatch.setattr(vision, "_keep", keep)
    assert [path.name for path in (tmp_path / "vision").iterdir()] == ["step=4.ckpt"]
    assert pretrain_vision(resumed, lessons, **run, folder=tmp_path / "vision") == wanted
    again = small()  # what is done is not done twice
    assert pretrain_vision(again, lessons, **run, folder=tmp_path / "vision") == wanted
    for network in (resumed, again):
        for one, other in zip(network.vision.parameters(), whole.vision.parameters(), strict=True):
            assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"vision/step=7.ckpt is of a pretraining with steps 7, .* seed 3"):
        pretrain_vision(small(), lessons, **{**run, "seed": 4}, folder=tmp_path / "vision")


def test_the_chance_of_the_caller_is_left_as_it_was() -> None:
    torch.manual_seed(1)
    wanted = torch.rand(3)
    torch.manual_seed(1)
    with seeded(0):
        drawn = torch.nn.Linear(2, 2).weight
    assert torch.equal(torch.rand(3), wanted)
    torch.manual_seed(0)
    assert torch.equal(torch.nn.Linear(2, 2).weight, drawn)  # what a global seed gave


def test_label_maps_move_with_their_picture() -> None:
    """A picture whose bright half is labelled: the map follows every change of it."""
    image = torch.zeros(3, 64, 64)
    image[:, 12:52, 20:32] = 0.8
    maps = torch.full((len(MAPS), 64, 64), UNKNOWN, dtype=torch.uint8)
    maps[0] = (image[0] > 0.5) * 5
    generator, places = torch.Generator().manual_seed(0), set()
    for _ in range(20):
        moved, wanted = _moved(image, maps, generator)
        assert set(wanted[0].unique().tolist()) <= {0, 5} and bool((wanted[1:] == UNKNOWN).all())
        bright = moved[0] > 0.3
        both = (bright & (wanted[0] == 5)).sum() / bright.sum().clamp(min=1)
        assert both > 0.9
        places.add(int((wanted[0] == 5).float().sum(0).argmax()))
    assert max(places) - min(places) > 10 and max(places) > 34  # mirrored too


class Seeing(torch.nn.Module):
    """A vision encoder whose feature of a patch is the patch: (V, p*p*3)."""

    patch_size = 8

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.LayerNorm(8 * 8 * 3)

    def forward(self, patches: torch.Tensor, cells: torch.Tensor, lengths: tuple[int, ...]) -> torch.Tensor:
        return patches


def test_a_head_paints_each_pixel_where_it_is() -> None:
    """Logits that follow the brightness of each pixel have no loss against the map of what is bright."""
    quiz = Quiz(Seeing(), {}, {"parcels": 2})  # type: ignore[arg-type]
    painter = quiz.painters[0]
    torch.nn.init.zeros_(painter.weight)
    torch.nn.init.zeros_(painter.bias)
    with torch.no_grad():
        for pixel in range(64):
            painter.weight[2 * pixel + 1, 3 * pixel] = 30.0  # the label 1 by the first colour, in [-1, 1]
    bright = torch.rand(1, 64, 64, generator=torch.Generator().manual_seed(0)) < 0.2
    image, unasked = bright.float().expand(3, -1, -1)[None], torch.zeros(1, 0, dtype=torch.long)
    assert float(quiz(image, unasked, bright[None].byte()).detach()) < 1e-6
    assert float(quiz(image, unasked, bright.mT[None].byte()).detach()) > 1


def test_a_head_learns_a_label_map() -> None:
    image = torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0))
    maps = torch.full((len(MAPS), 64, 64), UNKNOWN, dtype=torch.uint8)
    maps[0] = (image[0] > 0.5) * 5
    quiz = Quiz(small().vision, {})  # type: ignore[arg-type]
    optimizer = torch.optim.AdamW(quiz.parameters(), 3e-3)
    losses = []
    for _ in range(15):
        loss = quiz(image[None], torch.zeros(1, 0, dtype=torch.long), maps[None])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.4 * losses[0]


def test_without_questions_there_is_nothing_to_learn() -> None:
    pictures = AtlasDataset(section="train", tasks=["sr4"], permissive_only=True, progress=False)
    with pytest.raises(ValueError, match="needs a vision encoder and questions"):
        pretrain_vision(small(), pictures, steps=1)
