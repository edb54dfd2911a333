# SPDX-License-Identifier: Apache-2.0
"""Pretraining of the vision encoder: what is in a picture, and what is where.

A linear head a question reads its mean feature, and a linear head a label map reads each token: what each
pixel of the patch belongs to. A joint run begins with hundreds of steps in which answers ignore the picture,
and then learns training pictures by heart (tests/benchmarks/LOG.md); an encoder that knows the anatomy of a
patch, and is not trained further, shortens the one and forbids the other. The heads are thrown away.
  B images   P patches   D hidden size   p side of a patch   M label maps
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.atlas_regions import PARCELS
from monai_unimedvl.data.atlas_tasks import LEGENDS
from monai_unimedvl.data.augment import OF_CONTRAST, RECOLOURED, augment, recolour
from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.networks.vision import Vision
from monai_unimedvl.sequence import Turn
from monai_unimedvl.training.checkpoints import AtomicCheckpointIO, newest
from monai_unimedvl.training.optimizer import MuonAdamW, warmup_stable_decay
from monai_unimedvl.training.precision import multiplies_bfloat16

UNASKED = -100  # cross entropy's own word for "no label"
EVERY = 100  # steps between checkpoints

# label maps of a picture -> labels, nothing included
MAPS = {"parcels": len(PARCELS) + 1} | {
    task: len(legend) + 1 for task, legend in LEGENDS.items() if task != "seg-lobes"
}
WORTH = {"parcels": 3.0}  # of a map's loss against the mean of the questions'; 1 otherwise
UNKNOWN = 255  # in a label map: nobody told


class Quiz(nn.Module):
    """A vision encoder with one linear head a question, and one a label map.

    Args:
        answers: possible answers of each question.
        maps: how many labels each label map has.
    """

    def __init__(self, vision: Vision, answers: dict[str, list[str]], maps: Mapping[str, int] = MAPS) -> None:
        super().__init__()
        self.vision, self.maps = vision, dict(maps)
        size, pixels = vision.norm.weight.shape[0], vision.patch_size**2
        self.heads = nn.ModuleList(nn.Linear(size, len(choices)) for choices in answers.values())
        self.painters = nn.ModuleList(nn.Linear(size, pixels * labels) for labels in maps.values())

    def forward(self, images: Tensor, labels: Tensor, painted: Tensor) -> Tensor:
        """Loss of what is known: images (B, 3, H, W) in [0, 1], labels (B, questions), maps (B, M, H, W)."""
        patch = self.vision.patch_size
        h, w = images.shape[-2] // patch, images.shape[-1] // patch
        patches = torch.cat([patchify(image * 2 - 1, patch) for image in images])
        cells = torch.cartesian_prod(torch.arange(h), torch.arange(w)).repeat(len(images), 1)
        features = self.vision(patches, cells, (h * w,) * len(images)).unflatten(0, (len(images), -1))
        mean = features.mean(1)  # (B, D)
        asked = [
            F.cross_entropy(head(mean).float(), wanted, ignore_index=UNASKED)
            for head, wanted in zip(self.heads, labels.unbind(1), strict=True)
            if bool((wanted != UNASKED).any())
        ]
        loss = torch.stack(asked).mean() if asked else features.sum() * 0
        for (name, count), painter, wanted in zip(
            self.maps.items(), self.painters, painted.unbind(1), strict=True
        ):
            known = (wanted != UNKNOWN).flatten(1).any(1)  # (B,)
            if bool(known.any()):
                logits = painter(features[known]).unflatten(-1, (-1, count))  # (n, P, p*p, labels)
                told = torch.stack([patchify(each[None], patch) for each in wanted[known]])  # (n, P, p*p)
                loss = loss + WORTH.get(name, 1.0) * F.cross_entropy(
                    logits.flatten(0, 2).float(), told.flatten().long(), ignore_index=UNKNOWN
                )
        return loss


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights are drawn from `seed` inside, and the caller's own chance is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def pretrain_vision(
    network: UniMedVL, dataset: AtlasDataset, *, steps: int, batch: int = 64, seed: int = 0,
    progress: bool = True, folder: str | Path | None = None,
) -> list[float]:  # fmt: skip
    """Train `network.vision` in place on the answers and label maps of `dataset`; returns each step's loss.

    Args:
        progress: show a bar.
        folder: keeps a checkpoint, from which the same call goes on after a kill and ends with the same
            weights; None keeps none.

    Raises:
        ValueError: the network has no vision encoder, or the dataset no questions; the folder is that of
            another pretraining.
    """
    images, labels, painted, answers = _lessons(dataset)
    if network.vision is None or not answers:
        raise ValueError("pretrain_vision needs a vision encoder and questions: give both, or take 0 steps.")
    with seeded(seed):
        quiz = Quiz(network.vision, answers)
    optimizer = MuonAdamW(quiz, matrix_lr=4e-3, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_stable_decay(step, warmup=20, total=steps, decay=0.5)
    )
    half = images[0].device.type == "cpu" and multiplies_bfloat16()
    generator = torch.Generator().manual_seed(seed)
    blind = [n for n, question in enumerate(answers) if question in OF_CONTRAST]
    told = {"steps": steps, "batch": batch, "seed": seed, "pictures": len(images), "questions": len(answers)}
    parts = {"quiz": quiz, "optimizer": optimizer, "schedule": schedule}
    losses: list[float] = [] if folder is None else _resume(Path(folder), told, parts, generator)
    begun = len(losses)
    for step in trange(
        begun, steps, desc="pretrain vision", leave=False, disable=not progress, initial=begun, total=steps
    ):
        chosen = torch.randint(len(images), (batch,), generator=generator).tolist()
        asked = labels[chosen]
        shown, maps = [], []
        for row, i in enumerate(chosen):
            image = images[i]
            if torch.rand((), generator=generator) < RECOLOURED and torch.equal(image[0], image[1]):
                image = recolour(image, generator)
                asked[row, blind] = UNASKED
            moved, wanted = _moved(image, painted[i], generator)
            shown.append(moved)
            maps.append(wanted)
        with torch.autocast("cpu", torch.bfloat16, enabled=half):
            loss = quiz(torch.stack(shown), asked, torch.stack(maps))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(quiz.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if folder is not None and (not (step + 1) % EVERY or step + 1 == steps):
            state = {name: part.state_dict() for name, part in parts.items()}
            _keep(Path(folder), {**state, "told": told, "losses": losses, "chance": generator.get_state()})
    logging.getLogger(__name__).info("vision pretrained: loss %.3f -> %.3f", losses[0], losses[-1])
    return losses


def _keep(folder: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint, then remove those before it."""
    name = f"step={len(state['losses'])}.ckpt"
    AtomicCheckpointIO().save_checkpoint(state, folder / name)
    for older in folder.glob("*.ckpt"):
        if older.name != name:
            older.unlink()


def _resume(
    folder: Path, told: dict[str, int], parts: Mapping[str, Any], generator: torch.Generator
) -> list[float]:
    """The losses up to the checkpoint of a folder, whose state is taken over; none without one.

    Raises:
        ValueError: it is that of another pretraining.
    """
    last = newest(folder)
    if last is None:
        return []
    state = torch.load(last, map_location="cpu", weights_only=True)
    if state["told"] != told:
        raise ValueError(
            f"{folder.name}/{last.name} is of a pretraining with {_listed(state['told'])}, expected"
            f" {_listed(told)}: choose another folder, or remove it."
        )
    for name, part in parts.items():
        part.load_state_dict(state[name])
    generator.set_state(state["chance"])
    return list(state["losses"])


def _listed(told: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {value}" for name, value in told.items())


def _moved(image: Tensor, painted: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """An image (3, H, W) and its label maps (M, H, W), changed alike; nothing is where nothing came from."""
    known = (painted != UNKNOWN).flatten(1).any(1)  # (M,)
    task = "seg-parcels" if bool(known[list(MAPS).index("parcels")]) else "seg-any"  # who may be mirrored
    numbers = torch.where(known[:, None, None], painted, 0).float()
    given, found = augment([Turn("user", [image]), Turn("assistant", [numbers])], generator, task=task)
    wanted = found.parts[0].round().to(torch.uint8)  # type: ignore[union-attr]
    wanted[~known] = UNKNOWN
    return given.parts[0], wanted  # type: ignore[return-value]


def _lessons(dataset: AtlasDataset) -> tuple[list[Tensor], Tensor, Tensor, dict[str, list[str]]]:
    """Pictures, labels (N, questions), label maps (N, M, H, W) uint8, and the answers of each question."""
    entries = [(i, entry) for i, entry in enumerate(dataset.entries) if entry.task == "vqa"]
    answers: dict[str, list[str]] = defaultdict(list)
    for _, entry in entries:
        if str(entry.answer) not in answers[entry.question]:
            answers[entry.question].append(str(entry.answer))
    column = {question: n for n, question in enumerate(answers)}
    first: dict[str, int] = {}
    for i, entry in entries:
        first.setdefault(entry.picture.id, i)
    row = {picture: n for n, picture in enumerate(first)}
    labels = torch.full((len(row), len(column)), UNASKED)
    for _, entry in entries:
        choice = answers[entry.question].index(str(entry.answer))
        labels[row[entry.picture.id], column[entry.question]] = choice
    images = [dataset[i]["turns"][0].parts[0] for i in first.values()]
    painted = torch.full(
        (len(images), len(MAPS), *(images[0].shape[1:] if images else ())), UNKNOWN, dtype=torch.uint8
    )
    for n, i in enumerate(first.values()):
        maps = dataset.entries[i].picture.maps
        for m, name in enumerate(MAPS):
            if name in maps:
                painted[n, m] = torch.from_numpy(maps[name].copy())
    return images, labels, painted, dict(answers)
