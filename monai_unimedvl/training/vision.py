# SPDX-License-Identifier: Apache-2.0
"""Pretraining of the vision encoder on answers alone: a linear head a question on its mean feature.

A joint run begins with hundreds of steps in which answers ignore the picture (tests/benchmarks/LOG.md); an
encoder that already tells planes and contrasts apart shortens them. The heads are thrown away.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import trange

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.augment import OF_CONTRAST, RECOLOURED, augment, recolour
from monai_unimedvl.networks.layers import patchify
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.networks.vision import Vision
from monai_unimedvl.sequence import Turn
from monai_unimedvl.training.optimizer import MuonAdamW, warmup_stable_decay

UNASKED = -100  # cross entropy's own word for "no label"


class Quiz(nn.Module):
    """A vision encoder with one linear head a question.

    Args:
        answers: possible answers of each question.
    """

    def __init__(self, vision: Vision, answers: dict[str, list[str]]) -> None:
        super().__init__()
        self.vision = vision
        size = vision.norm.weight.shape[0]
        self.heads = nn.ModuleList(nn.Linear(size, len(choices)) for choices in answers.values())

    def forward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Mean loss over what was asked: images (B, 3, H, W) in [0, 1], labels (B, questions)."""
        patch = self.vision.patch_size
        h, w = images.shape[-2] // patch, images.shape[-1] // patch
        patches = torch.cat([patchify(image * 2 - 1, patch) for image in images])
        cells = torch.cartesian_prod(torch.arange(h), torch.arange(w)).repeat(len(images), 1)
        features = self.vision(patches, cells, (h * w,) * len(images)).unflatten(0, (len(images), -1)).mean(1)
        losses = [
            F.cross_entropy(head(features), asked, ignore_index=UNASKED)
            for head, asked in zip(self.heads, labels.unbind(1), strict=True)
            if bool((asked != UNASKED).any())
        ]
        return torch.stack(losses).mean()


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Weights are drawn from `seed` inside, and the caller's own chance is as before afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def pretrain_vision(
    network: UniMedVL, dataset: AtlasDataset, *, steps: int, batch: int = 64, seed: int = 0,
    progress: bool = True,
) -> list[float]:  # fmt: skip
    """Train `network.vision` in place on the answers of `dataset`; returns the loss of each step.

    Args:
        progress: show a bar.

    Raises:
        ValueError: the network has no vision encoder, or the dataset no questions.
    """
    images, labels, answers = _lessons(dataset)
    if network.vision is None or not answers:
        raise ValueError("pretrain_vision needs a vision encoder and questions: give both, or take 0 steps.")
    with seeded(seed):
        quiz = Quiz(network.vision, answers)
    optimizer = MuonAdamW(quiz, matrix_lr=4e-3, lr=2e-3, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: warmup_stable_decay(step, warmup=20, total=steps, decay=0.5)
    )
    generator = torch.Generator().manual_seed(seed)
    blind = [n for n, question in enumerate(answers) if question in OF_CONTRAST]
    losses: list[float] = []
    for _ in trange(steps, desc="pretrain vision", leave=False, disable=not progress):
        chosen = torch.randint(len(images), (batch,), generator=generator).tolist()
        asked = labels[chosen]
        shown = []
        for row, i in enumerate(chosen):
            image = images[i]
            if torch.rand((), generator=generator) < RECOLOURED and torch.equal(image[0], image[1]):
                image = recolour(image, generator)
                asked[row, blind] = UNASKED
            shown.append(augment([Turn("user", [image])], generator, task="vqa")[0].parts[0])
        with torch.autocast("cpu", torch.bfloat16, enabled=images[0].device.type == "cpu"):
            loss = quiz(torch.stack(shown), asked)  # type: ignore[arg-type]
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(quiz.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
    logging.getLogger(__name__).info("vision pretrained: loss %.3f -> %.3f", losses[0], losses[-1])
    return losses


def _lessons(dataset: AtlasDataset) -> tuple[list[Tensor], Tensor, dict[str, list[str]]]:
    """Pictures, labels (N, questions) and the answers of each question."""
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
    return images, labels, dict(answers)
