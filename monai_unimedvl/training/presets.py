# SPDX-License-Identifier: Apache-2.0
"""The nano model's training: which tasks at which weight, its tokenizer, its codec, its sizes.

`nano_training` gives everything that a trainer needs; the bundle's `configs/pretrain.json` calls it.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from monai_unimedvl import weights
from monai_unimedvl.data.atlas import AtlasDataset, as_tensor
from monai_unimedvl.data.atlas_runs import runs
from monai_unimedvl.data.atlas_tasks import DEFAULT_TASKS, QUESTIONS
from monai_unimedvl.data.augment import OF_CONTRAST, RECOLOURED, abridged, augment, recolour
from monai_unimedvl.data.mixture import Dropout, Mixture, Stream
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config, nano
from monai_unimedvl.sequence import Turn
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.preludes import SHARE, Preludes
from monai_unimedvl.training.vision import pretrain_vision, seeded
from monai_unimedvl.transforms.segments import Rule, ToSegments

# shares, which a Mixture divides by their sum; drawing needs more looks at a picture than answering does
WEIGHTS = {
    "vqa": 0.22, "caption": 0.06, "text-to-image": 0.15, "seg-tissue": 0.12, "seg-lobes": 0.09,
    "seg-tumour": 0.02, "seg-bone": 0.015, "seg-nuclei": 0.025, "sr4": 0.14, "t1-to-t2": 0.025,
    "t1-to-pd": 0.025, "t2-to-t1": 0.02, "t1-to-gm": 0.02, "ct-to-bone": 0.01, "h-to-he": 0.02,
    "h-to-ihc": 0.015, "slice-group": 0.015, "edit-group": 0.04,
}  # fmt: skip
# those of the shipped weights, whose encoder does not learn any more: more of what lags, and runs of slices
SHARES = {
    **WEIGHTS, "vqa": 0.17, "slices": 0.025, "text-to-image": 0.18, "seg-lobes": 0.13, "seg-nuclei": 0.02,
    "sr4": 0.15, "slice-group": 0.01, "edit-group": 0.03,
}  # fmt: skip
# those of a leg in which the drawing side alone learns, so that answers stay as they are
DRAWING = {
    **SHARES, "vqa": 0.0, "slices": 0.0, "caption": 0.0, "text-to-image": 0.6, "seg-lobes": 0.18,
    "sr4": 0.16, "t1-to-t2": 0.035, "t1-to-pd": 0.035, "t2-to-t1": 0.03, "t1-to-gm": 0.025,
    "ct-to-bone": 0.015, "h-to-he": 0.03, "h-to-ihc": 0.03, "slice-group": 0.015, "edit-group": 0.04,
}  # fmt: skip
LEGS: dict[str, Mapping[str, float]] = {"joint": SHARES, "drawing": DRAWING, "words": DRAWING}
ABRIDGED = {"words": 0.6}  # of the descriptions that a leg draws from, see `abridged`
UNREAD = 0.9  # of a picture's patches, at most, that answers do without, see `Dropout.patches`
EDITED_TOGETHER = ("seg-tissue", "seg-lobes", "sr4", "t1-to-t2", "t1-to-pd", "t2-to-t1", "t1-to-gm")
GAPS = (2.0, 4.0)  # mm between the slices of a group
RARE = {"histology": 4, "fundus photograph": 5}  # how often an epoch of super-resolution shows them
UNHEARD = ("slice-group",)  # adds no word to the tokenizer and no picture to the codec
DROPOUTS = {"caption": Dropout(), "text-to-image": Dropout(text=0.1)}  # edits: 5 % of each condition
VISION_STEPS = 3500
QUESTIONS_A_DIALOGUE = 6  # at most
LENGTHS = (3, 5, 7, 9)  # of runs of slices that are asked about together
REPEATS = 0.5  # how often of such a run only what is new is read
FIRST = ("plane", "contrast", "body")
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
    vision_steps: int | None = None,
    start: str | Path | None = None,
    leg: str = "joint",
    strokes: int = 0,
    vision_folder: str | Path | None = None,
    progress: bool = True,
) -> NanoTraining:
    """The network, tokenizer and mixture of the nano model, from the atlas packages.

    Args:
        root: the atlas cache; None is the default one.
        vision_steps: of pretraining the vision encoder; None: 3500 without `start`, none with it; 0 when
            weights are loaded afterwards anyway.
        permissive_only: leave out sources under GPL.
        budget: tokens a pack.
        start: a folder of weights to begin with, with their tokenizer; None begins anew.
        leg: one of `LEGS`, whose shares of the tasks it names; what is not to learn in it, `UniMedVLModule`
            must be told (`frozen`).
        strokes: of the network, see `UniMedVL`; new ones are added to weights that have none, 0 leaves what
            the weights have.
        vision_folder: of the checkpoint from which pretraining the encoder goes on after a kill.
        progress: show bars.

    Raises:
        ValueError: another leg than these, weights to start from without a tokenizer, with strokes of
            another width, or with `vision_steps`.
    """
    if leg not in LEGS:
        raise ValueError(
            f"nano_training got leg={leg!r}, expected one of {', '.join(LEGS)}: use one of them."
        )
    if start is not None and vision_steps:
        raise ValueError(
            f"nano_training got start and vision_steps={vision_steps}, expected one of them, the encoder of "
            "weights being trained: set vision_steps to 0, or leave start out."
        )
    tasks = (*DEFAULT_TASKS, "slice-group")
    dataset = AtlasDataset(
        root, "train", tasks=tasks, permissive_only=permissive_only, seed=seed, progress=progress
    )
    packs = partial(
        nano_mixture, dataset, budget=budget, seed=seed, shares=LEGS[leg], unread=UNREAD,
        abridge=ABRIDGED.get(leg, 0.0),
    )  # fmt: skip
    if start is not None:
        network, tokenizer = weights.load(start, dtype=torch.float32)
        if tokenizer is None:
            raise ValueError(f"start {Path(start).name} has no tokenizer, expected one beside the weights.")
        if strokes:
            network = _with_strokes(network, strokes, seed)
        return NanoTraining(network.train(), tokenizer, packs(tokenizer))
    tokenizer = Tokenizer.train(corpus(dataset), VOCABULARY)
    pictures = training_pictures(dataset)
    with seeded(seed):
        codec = PatchCodec.fit(pictures, patch=8, channels=96)
        sizes = {"hidden_size": hidden_size, "num_layers": num_layers, "strokes": strokes}
        network = nano(codec, vocab_size=len(tokenizer), **sizes)
    latents = codec.encode_stage_2_inputs(pictures)  # (N, C, h, w)
    network.latent_variance.copy_(latents.var(dim=(0, 2, 3)))  # type: ignore[operator]
    vision_steps = VISION_STEPS if vision_steps is None else vision_steps
    if vision_steps:
        pretrain_vision(
            network, dataset, steps=vision_steps, seed=seed, progress=progress, folder=vision_folder
        )
    return NanoTraining(network, tokenizer, packs(tokenizer))


def _with_strokes(network: UniMedVL, strokes: int, seed: int) -> UniMedVL:
    """The same network with strokes, new ones where it has none."""
    there = network.config["strokes"]
    if there not in (0, strokes):
        raise ValueError(
            f"nano_training got strokes={strokes}, expected {there}, those of the weights: set them to that."
        )
    if there:
        return network
    with seeded(seed):
        wider = from_config({**network.config, "strokes": strokes})
    wider.load_state_dict({**wider.state_dict(), **network.state_dict()})
    return wider


def nano_mixture(
    dataset: AtlasDataset, tokenizer: Tokenizer, *, budget: int, seed: int = 0,
    shares: Mapping[str, float] = WEIGHTS, unread: float = 0.0, abridge: float = 0.0,
) -> Mixture:  # fmt: skip
    """Packs of the atlas tasks at their shares, augmented, with condition dropout for guidance.

    Args:
        unread, abridge: see `atlas_streams`.
    """
    to_segments = ToSegments(tokenizer, view=NANO_RULE, canvas=NANO_RULE, together=True, keep_drawn=True)
    streams = atlas_streams(dataset, grouped=True, shares=shares, unread=unread, abridge=abridge)
    return Mixture(streams, to_segments, budget=budget, seed=seed)


def atlas_streams(
    dataset: AtlasDataset, *, grouped: bool = False, shares: Mapping[str, float] = WEIGHTS,
    unread: float = 0.0, abridge: float = 0.0,
) -> list[Stream]:  # fmt: skip
    """One stream for each task with a share; each dialogue asks some of the questions about a picture.

    Args:
        grouped: also neighbouring slices edited together (the segments then need `together=True`), and, with
            a share of "slices", asked about together.
        unread: share of the patches of a picture, at most, that answers about it and descriptions do without.
        abridge: share of the descriptions to draw from that say less, or another level, see `abridged`; above
            0 a share of the edits also comes in the midst of a dialogue, see `Preludes`.
    """
    places: dict[str, list[int]] = defaultdict(list)
    asked: dict[str, list[int]] = defaultdict(list)
    for i, entry in enumerate(dataset.entries):
        if entry.task == "vqa":
            asked[entry.picture.id].append(i)
        else:
            places[entry.task].append(i)
    groups = edit_groups(dataset) if grouped else []
    elsewhere = _levels_elsewhere(dataset) if abridge else {}
    preludes = Preludes(dataset) if abridge else None

    def one(task: str, index: int, generator: torch.Generator) -> list[Turn]:
        item = dataset[places[task][index]]
        if task == "text-to-image" and float(torch.rand((), generator=generator)) < abridge:
            (words,), *told = (turn.parts for turn in item["turns"])
            said = abridged(words, generator, elsewhere[item["plane"]])
            item["turns"] = [Turn("user", [said]), *(Turn("assistant", parts) for parts in told)]
        edited = item["kind"] == "image" and len(item["turns"][0].parts) == 2
        if preludes is not None and edited and float(torch.rand((), generator=generator)) < SHARE:
            turns, drawn_before = preludes.before(places[task][index], item["turns"], generator)
            return turns if drawn_before else augment(turns, generator, task=task, mirror=False)
        turned = task == "sr4" and item["modality"] in RARE
        return augment(item["turns"], generator, task="h-to-he" if turned else task)

    def together(index: int, generator: torch.Generator) -> list[Turn]:
        items = [dataset[i] for i in groups[index]]
        (asks, tells), words = zip(*(item["turns"] for item in items), strict=True), items[0]["turns"][0]
        given = [part for turn in asks for part in turn.parts[:1]]
        turns = [Turn("user", [*given, *words.parts[1:]]), Turn("assistant", [t.parts[0] for t in tells])]
        return augment(turns, generator, task=items[0]["task"])

    pictures = list(asked.values())

    def questions(index: int, generator: torch.Generator) -> list[Turn]:
        found = pictures[index]
        strange = _grey(dataset, found[0]) and float(torch.rand((), generator=generator)) < RECOLOURED
        if strange:
            found = [i for i in found if dataset.entries[i].question not in OF_CONTRAST]
        items = [dataset[i] for i in _asked(dataset, found, generator)]
        turns = list(items[0]["turns"])
        if strange:
            picture, *words = turns[0].parts
            turns[0] = Turn("user", [recolour(picture, generator), *words])
        for item in items[1:]:
            turns += [Turn("user", item["turns"][0].parts[1:]), item["turns"][1]]
        return augment(turns, generator, task="vqa")

    together_asked = grouped and shares.get("slices")
    found_runs = (
        [run for n in LENGTHS for run in runs(dataset.pictures, [dataset.section], length=n)]
        if together_asked
        else []
    )

    def slices(index: int, generator: torch.Generator) -> list[Turn]:
        run = found_runs[index]
        count = 1 + int(torch.randint(QUESTIONS_A_DIALOGUE, (), generator=generator))
        order = torch.randperm(len(run.asked), generator=generator)[:count].tolist()
        turns: list[Turn] = []
        for question in (run.asked[i] for i in order):
            forms = QUESTIONS[question.key]
            words = forms[int(torch.randint(len(forms), (), generator=generator))]
            shown = [] if turns else [as_tensor(picture.pixels) for picture in run.slices]
            turns += [Turn("user", [*shown, words]), Turn("assistant", [question.answer])]
        return augment(turns, generator, task="vqa")

    streams = []
    if pictures and shares.get("vqa"):
        streams.append(Stream("vqa", questions, len(pictures), shares["vqa"], Dropout(patches=unread)))
    if found_runs:
        streams.append(Stream("slices", slices, len(found_runs), shares["slices"], Dropout(repeats=REPEATS)))
    for task, found in places.items():
        if shares.get(task):
            dropout = DROPOUTS.get(task, Dropout(0.05, 0.05, 0.05))
            if task == "caption":
                dropout = dropout._replace(patches=unread)
            read, drawing = partial(one, task), task != "caption"
            often = [RARE.get(dataset.entries[i].picture.modality, 1) if task == "sr4" else 1 for i in found]
            order = partial(_oftener, often)
            streams.append(Stream(task, read, sum(often), shares[task], dropout, draws=drawing, order=order))
    if groups and shares.get("edit-group"):
        dropout = Dropout(0.05, 0.05, 0.05)
        streams.append(Stream("edit-group", together, len(groups), shares["edit-group"], dropout, draws=True))
    return streams


def _asked(dataset: AtlasDataset, found: list[int], generator: torch.Generator) -> list[int]:
    """Some of the questions about a picture: half of the dialogues begin with the plane, contrast or body.

    Otherwise the first question is seldom one of these, and a later one is answered from the words before:
    only axial slices are asked whether they lie below the ventricles.
    """
    order = [found[i] for i in torch.randperm(len(found), generator=generator).tolist()]
    first = [i for i in order if dataset.entries[i].question in FIRST]
    if first and float(torch.rand((), generator=generator)) < 0.5:
        order = [first[0], *(i for i in order if i != first[0])]
    count = 1 + int(torch.randint(QUESTIONS_A_DIALOGUE, (), generator=generator))
    return order[:count]


def _levels_elsewhere(dataset: AtlasDataset) -> dict[str, list[str]]:
    """Plane -> the levels that the dataset names in other planes, and never in this one; "" for no plane."""
    named: dict[str, set[str]] = defaultdict(set)
    for picture in (entry.picture for entry in dataset.entries):
        named[picture.plane] |= {str(picture.facts["level"])} if "level" in picture.facts else set()
    every = set().union(*named.values())
    return {plane: sorted(every - levels) if plane else [] for plane, levels in named.items()}


def edit_groups(dataset: AtlasDataset) -> list[list[int]]:
    """Entries of two or three neighbouring slices of one volume, to be edited together."""
    at = {
        (e.task, e.picture.source, e.picture.plane, e.picture.position): i
        for i, e in enumerate(dataset.entries)
        if e.task in EDITED_TOGETHER and "mm" in e.picture.facts
    }
    groups = []
    for (task, source, plane, position), first in at.items():
        for gap in GAPS:
            further = [at.get((task, source, plane, position + step * gap)) for step in (1, 2)]
            run = [first, *further] if None not in further else [first, *further[:1]]
            if None not in run:
                groups.append([i for i in run if i is not None])
    return groups


def _oftener(often: list[int], generator: torch.Generator) -> Tensor:
    """The places of an epoch in an order drawn by chance, each as often as told."""
    places = torch.arange(len(often)).repeat_interleave(torch.tensor(often))
    return places[torch.randperm(len(places), generator=generator)]


def _grey(dataset: AtlasDataset, index: int) -> bool:
    """Whether the picture of an entry is a scan with one channel, in a plane."""
    picture = dataset.entries[index].picture
    return bool(picture.plane) and picture.pixels.ndim == 2


def corpus(dataset: AtlasDataset) -> list[str]:
    """All words of the dataset: prompts and answers, each surface form once an item."""
    words: list[str] = []
    for entry in (entry for entry in dataset.entries if entry.task not in UNHEARD):
        words += [entry.words, *([entry.answer] if entry.answer is not None else [])]
    return words


def training_pictures(dataset: AtlasDataset, count: int = 1500) -> Tensor:
    """(N, 3, 64, 64) in [-1, 1]: pictures of the drawing tasks, conditions and targets, about `count`."""
    tensors: list[Tensor] = []
    order = [i for i, entry in enumerate(dataset.entries) if entry.task not in ("vqa", "caption", *UNHEARD)]
    random.Random(0).shuffle(order)
    for i in order:
        tensors += [p for turn in dataset[i]["turns"] for p in turn.parts if isinstance(p, Tensor)]
        if len(tensors) >= count:
            break
    return torch.stack(tensors) * 2 - 1
