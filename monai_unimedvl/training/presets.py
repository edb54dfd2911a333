# SPDX-License-Identifier: Apache-2.0
"""The nano model's training: which tasks at which weight, its tokenizer, its codec, its sizes.

`nano_training` gives everything that a trainer needs; the bundle's `configs/pretrain.json` calls it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.augment import augment
from monai_unimedvl.data.mixture import Dropout, Mixture, Stream
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, nano
from monai_unimedvl.sequence import Turn
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.vision import pretrain_vision, seeded
from monai_unimedvl.transforms.segments import Rule, ToSegments

# share of draws; drawing needs more looks at a picture than answering does
WEIGHTS = {
    "vqa": 0.26, "caption": 0.06, "text-to-image": 0.16, "seg-tissue": 0.12, "seg-lobes": 0.05,
    "seg-tumour": 0.02, "seg-bone": 0.02, "seg-nuclei": 0.03, "sr4": 0.13, "t1-to-t2": 0.03, "t1-to-pd": 0.03,
    "t2-to-t1": 0.02, "t1-to-gm": 0.02, "ct-to-bone": 0.01, "h-to-he": 0.02, "h-to-ihc": 0.02,
}  # fmt: skip
DROPOUTS = {"caption": Dropout(), "text-to-image": Dropout(text=0.1)}  # edits: 5 % of each condition
QUESTIONS_A_DIALOGUE = 6
NANO_RULE = Rule(max_size=64, min_size=64, stride=8)
VOCABULARY = 640


@dataclass(frozen=True)
class NanoTraining:
    """A fresh nano network, its tokenizer and the packs to train it on."""

    network: UniMedVL
    tokenizer: Tokenizer
    mixture: Mixture


def nano_training(
    root: str | Path | None = None,
    *,
    permissive_only: bool = False,
    budget: int = 7000,
    seed: int = 0,
    hidden_size: int = 160,
    num_layers: int = 4,
    vision_steps: int = 600,
    progress: bool = True,
) -> NanoTraining:
    """The network, tokenizer and mixture of the nano model, from the atlas packages.

    Args:
        root: the atlas cache; None is the default one.
        vision_steps: of pretraining the vision encoder; 0 when weights are loaded afterwards anyway.
        permissive_only: leave out sources under GPL.
        budget: tokens a pack.
        progress: show bars.
    """
    dataset = AtlasDataset(root, "train", permissive_only=permissive_only, seed=seed, progress=progress)
    tokenizer = Tokenizer.train(corpus(dataset), VOCABULARY)
    pictures = training_pictures(dataset)
    with seeded(seed):
        codec = PatchCodec.fit(pictures, patch=8, channels=96)
        network = nano(codec, vocab_size=len(tokenizer), hidden_size=hidden_size, num_layers=num_layers)
    latents = codec.encode_stage_2_inputs(pictures)  # (N, C, h, w)
    network.latent_variance.copy_(latents.var(dim=(0, 2, 3)))  # type: ignore[operator]
    if vision_steps:
        pretrain_vision(network, dataset, steps=vision_steps, seed=seed, progress=progress)
    return NanoTraining(network, tokenizer, nano_mixture(dataset, tokenizer, budget=budget, seed=seed))


def nano_mixture(dataset: AtlasDataset, tokenizer: Tokenizer, *, budget: int, seed: int = 0) -> Mixture:
    """Packs of the atlas tasks at `WEIGHTS`, augmented, with condition dropout for guidance."""
    to_segments = ToSegments(tokenizer, view=NANO_RULE, canvas=NANO_RULE)
    streams = atlas_streams(dataset)
    return Mixture(streams, to_segments, budget=budget, seed=seed)


def atlas_streams(dataset: AtlasDataset) -> list[Stream]:
    """One stream for each task of `WEIGHTS`; each dialogue asks some of the questions about a picture."""
    places: dict[str, list[int]] = defaultdict(list)
    asked: dict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(dataset.entries):
        if entry.task == "vqa":
            asked[entry.picture.id].append(i)
        else:
            places[entry.task].append(i)

    def one(task: str, index: int, generator: torch.Generator) -> list[Turn]:
        item = dataset[places[task][index]]
        return augment(item["turns"], generator, task=task)

    pictures = list(asked.values())

    def questions(index: int, generator: torch.Generator) -> list[Turn]:
        order = torch.randperm(len(pictures[index]), generator=generator)[:QUESTIONS_A_DIALOGUE]
        items = [dataset[pictures[index][i]] for i in order.tolist()]
        turns = list(items[0]["turns"])
        for item in items[1:]:
            turns += [Turn("user", item["turns"][0].parts[1:]), item["turns"][1]]
        return augment(turns, generator, task="vqa")

    streams = [Stream("vqa", questions, len(pictures), WEIGHTS["vqa"])] if pictures else []
    for task, found in places.items():
        if task in WEIGHTS:
            dropout = DROPOUTS.get(task, Dropout(0.05, 0.05, 0.05))
            read, drawing = partial(one, task), task != "caption"
            streams.append(Stream(task, read, len(found), WEIGHTS[task], dropout, draws=drawing))
    return streams


def corpus(dataset: AtlasDataset) -> list[str]:
    """All words of the dataset: prompts and answers, each surface form once an item."""
    words: list[str] = []
    for entry in dataset.entries:
        words += [entry.words, *([entry.answer] if entry.answer is not None else [])]
    return words


def training_pictures(dataset: AtlasDataset, count: int = 1500) -> Tensor:
    """(N, 3, 64, 64) in [-1, 1]: pictures of the drawing tasks, conditions and targets, about `count`."""
    tensors: list[Tensor] = []
    order = [i for i, entry in enumerate(dataset.entries) if entry.task not in ("vqa", "caption")]
    random.Random(0).shuffle(order)
    for i in order:
        tensors += [p for turn in dataset[i]["turns"] for p in turn.parts if isinstance(p, Tensor)]
        if len(tensors) >= count:
            break
    return torch.stack(tensors) * 2 - 1
