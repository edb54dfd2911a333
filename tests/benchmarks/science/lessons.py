# SPDX-License-Identifier: Apache-2.0
"""What an arm learns and how it is asked: the atlas tasks, and what single questions add to them.

`plan: true` puts the caption of the picture before what is drawn of it (question c); `aligned` adds
SynerMedGen's three understanding tasks about pairs (question d); `pair: pd-to-t2` is a translation that the
shipped nano has never seen, though it has seen both contrasts (question g).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.bundle import load
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.atlas_tasks import caption_of
from monai_unimedvl.data.augment import augment
from monai_unimedvl.data.mixture import Dropout, Stream
from monai_unimedvl.data.phrases import fill, listed, templates
from monai_unimedvl.evaluation.asking import Build, Drawing, Engine, Made, ask
from monai_unimedvl.evaluation.text import token_f1
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer, InterleavedInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import Turn
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.lessons import atlas_lessons

WORDS_ALONE = ("text", "aligned")  # nothing of the benchmark asks for them
TRANSLATIONS = {
    "t1-to-t2": ("T1", "T2"), "t1-to-pd": ("T1", "PD"), "t2-to-t1": ("T2", "T1"),
    "t1-to-gm": ("T1", "a grey matter map"),
}  # fmt: skip
GAP = "\0"  # where the pictures stand in a sentence
PLAN_WORDS = 96  # new tokens at most
NEW_PAIR, LIKE = "pd-to-t2", "t1-to-t2"  # the new translation is scored by the rules of the other
NEW_WORDS = "Turn this PD MRI into T2."


def build(config: dict[str, Any], dataset: Any) -> dict[str, list[Stream]]:
    """Kind -> streams, at the weights of the arm's tasks."""
    tasks = config["tasks"]
    if "pair" in config:
        return {"interleaved": [_pair_stream(new_pair(dataset))]}
    source = Planned(dataset) if config.get("plan") else dataset
    found = atlas_lessons(source, list(tasks))
    if "aligned" in tasks:
        found["image-to-text"].append(aligned(dataset))
    return {
        kind: [replace(stream, weight=tasks[stream.name]) for stream in streams]
        for kind, streams in found.items()
    }


class Planned:
    """A dataset whose drawings from a picture begin with its caption, as a plan."""

    def __init__(self, dataset: Any) -> None:
        self.dataset, self.entries = dataset, dataset.entries

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> dict[str, Any]:
        item, entry = self.dataset[index], self.entries[index]
        if entry.answer is None and entry.shown is not None:
            asked, told = item["turns"]
            item = {**item, "turns": [asked, Turn("assistant", [caption_of(entry.picture), *told.parts])]}
        return item  # type: ignore[no-any-return]


def aligned(dataset: Any) -> Stream:
    """Target selection, modality identification and direction, about the pairs of the translations.

    A wrong target is the source itself, its slice in a third contrast, or another slice in the right one.
    """
    places = [i for i, entry in enumerate(dataset.entries) if entry.task in TRANSLATIONS]
    same_slice: dict[str, list[int]] = defaultdict(list)
    same_task: dict[str, list[int]] = defaultdict(list)
    for i in places:
        same_slice[dataset.entries[i].picture.id].append(i)
        same_task[dataset.entries[i].task].append(i)
    forms = templates("tasks", "")

    def read(index: int, generator: torch.Generator) -> list[Turn]:
        def one(count: int) -> int:
            return int(torch.randint(count, (), generator=generator))

        item = dataset[places[index]]
        picture, target = item["turns"][0].parts[0], item["truth"]
        source, wanted = TRANSLATIONS[item["task"]]
        task = ("target-selection", "modality-identification", "direction")[one(3)]
        sentences = forms[task]["asked"]
        form = sentences[one(len(sentences))]
        if task == "target-selection":
            thirds = [i for i in same_slice[dataset.entries[places[index]].picture.id] if i != places[index]]
            others = [i for i in same_task[item["task"]] if i != places[index]]
            kind = one(3)
            wrong = picture
            if kind == 1 and thirds:
                wrong = dataset[thirds[one(len(thirds))]]["truth"]
            elif kind == 2 and others:
                wrong = dataset[others[one(len(others))]]["truth"]
            right = one(2)
            shown = [picture, target, wrong] if right == 0 else [picture, wrong, target]
            words, answer = {"target": wanted, "source": source}, "AB"[right]
        elif task == "modality-identification":
            names, which = sorted((source, wanted)), one(2)
            names = names if one(2) else names[::-1]
            shown, answer = [(picture, target)[which]], (source, wanted)[which]
            words = {"choices": listed(names, "or")}
        else:
            ways = sorted((f"{source} to {wanted}", f"{wanted} to {source}"))
            ways = ways if one(2) else ways[::-1]
            shown, answer = [picture, target], f"{source} to {wanted}"
            words = {"choices": listed(ways, "or")}
        return augment(_asked(form, words, shown, answer), generator, task=item["task"])

    return Stream("aligned", read, len(places), 1.0, Dropout())


def _asked(form: str, words: dict[str, str], shown: Sequence[Tensor], answer: str) -> list[Turn]:
    said = fill(form, {**words, "images": GAP})
    before, _, after = said.partition(GAP) if GAP in said else ("", "", said)
    parts = [part for part in (before.strip(), *shown, after.strip()) if not isinstance(part, str) or part]
    return [Turn("user", parts), Turn("assistant", [answer])]


def new_pair(dataset: Any) -> list[dict[str, Any]]:
    """Items of the translation that the nano has not seen, PD to T2, out of T1 to PD and T1 to T2."""
    pds = {e.picture.id: i for i, e in enumerate(dataset.entries) if e.task == "t1-to-pd"}
    items = []
    for i, entry in enumerate(dataset.entries):
        if entry.task == LIKE and entry.picture.id in pds:
            item, pd = dataset[i], dataset[pds[entry.picture.id]]["truth"]
            turns = [Turn("user", [pd, NEW_WORDS]), item["turns"][1]]
            items.append({**item, "turns": turns, "baseline": pd, "contrast": "PD"})
    return items


def _pair_stream(items: Sequence[dict[str, Any]]) -> Stream:
    def read(index: int, generator: torch.Generator) -> list[Turn]:
        return augment(items[index]["turns"], generator, task=LIKE)

    return Stream(NEW_PAIR, read, len(items), 1.0, Dropout(0.05, 0.05, 0.05), draws=True)


def from_bundle(config: dict[str, Any]) -> tuple[UniMedVL, Tokenizer, dict[str, Any]]:
    """The shipped nano, ready to learn; its tokenizer."""
    network, tokenizer = load(config["bundle"])
    return network.float().train(), tokenizer, {}


def score(arm: Any, network: UniMedVL, tokenizer: Tokenizer, scorer: Any, runner: Any) -> dict[str, Any]:
    """Scores of what the arm has learnt; several ways of asking it are settings of their own."""
    config = arm.config
    tasks = config.get("scored") or [task for task in config["tasks"] if task not in WORDS_ALONE]
    found: dict[str, Any] = scorer(network, tokenizer, tasks)
    if config.get("plan"):
        found = _ways_of_planning(found, tasks, network, tokenizer, scorer)
    if "pair" in config:
        found["scores"] |= _score_new_pair(network, tokenizer, runner, arm, found)
    return found


def _ways_of_planning(
    found: dict[str, Any], tasks: Sequence[str], network: UniMedVL, tokenizer: Tokenizer, scorer: Any
) -> dict[str, Any]:
    """The scores again under "no plan", "own plan" and "true plan", and how good the own plans are."""
    drawn = [task for task in tasks if task != "caption"]
    captions: dict[bytes, str] = {}
    for section in scorer.config["sections"]:
        dataset = (scorer.datasets or {}).get(section)
        dataset = dataset or AtlasDataset(scorer.root, section, tasks=drawn, progress=False)
        for i, entry in enumerate(dataset.entries):
            if entry.shown is not None:
                captions[_bytes(dataset[i]["turns"][0].parts[0])] = caption_of(entry.picture)
    own, true = (Planning(network, tokenizer, captions, own=each) for each in (True, False))
    runs = {"own plan": scorer(network, tokenizer, drawn, engine=own.engine)["scores"],
            "true plan": scorer(network, tokenizer, drawn, engine=true.engine)["scores"]}  # fmt: skip
    for place, settings in found["scores"].items():
        if place.split("/")[1] in drawn:
            settings["no plan"] = settings.pop(next(iter(settings)))
            for name, scores in runs.items():
                settings[name] = next(iter(scores[place].values()))
    return {**found, "plans": own.quality()}


class Planning:
    """Answers requests for drawings in two steps: a plan in words, then the picture.

    Args:
        captions: bytes of a picture -> its true caption. own: the network writes the plan; else it is told.
    """

    def __init__(
        self, network: UniMedVL, tokenizer: Tokenizer, captions: dict[bytes, str], *, own: bool
    ) -> None:
        self.network, self.tokenizer, self.captions, self.own = network, tokenizer, captions, own
        self.written: list[tuple[str, str]] = []  # plan, truth

    @property
    def engine(self) -> Engine:
        """What the benchmark asks."""

        def engine(names: Sequence[str], build_: Build) -> Iterator[tuple[str, Made]]:
            for name in names:
                request = build_(name)
                if request.words:
                    yield name, ask(self.network, self.tokenizer, request)
                    continue
                how = request.drawing or Drawing()
                options: dict[str, Any] = {
                    "size": request.size, "steps": how.steps, "guidance": Guidance(text=how.guidance),
                    "seed": list(request.seeds),
                }  # fmt: skip
                told = [self.captions[_bytes(prompt[0])] for prompt in request.prompts]
                if self.own:
                    infer = InterleavedInferer(self.tokenizer, max_new_tokens=PLAN_WORDS, **options)
                    made = infer([list(prompt) for prompt in request.prompts], self.network)
                    self.written += [(str(plan), true) for (plan, _), true in zip(made, told, strict=True)]
                    drawn = [image for _, image in made]
                else:
                    prompts = [[*prompt, plan] for prompt, plan in zip(request.prompts, told, strict=True)]
                    drawn = ImageInferer(self.tokenizer, **options)(prompts, self.network)
                images = torch.stack(drawn).float().clamp(0, 1)  # type: ignore[arg-type]
                yield name, Made(images=(images * 255).round().to(torch.uint8))

        return engine

    def quality(self) -> dict[str, float]:
        """Of the plans written: how many are the caption to the letter, and their token F1."""
        same = [float(plan == true) for plan, true in self.written]
        overlap = [token_f1(plan, true) for plan, true in self.written]
        return {
            "plans": float(len(same)), "exact": round(sum(same) / max(1, len(same)), 4),
            "token F1": round(sum(overlap) / max(1, len(overlap)), 4),
        }  # fmt: skip


def _score_new_pair(
    network: UniMedVL, tokenizer: Tokenizer, runner: Any, arm: Any, found: dict[str, Any]
) -> dict[str, Any]:
    """The new translation under its own name; its items join the list of the others."""
    from science.scoring import Scorer

    sections = {
        section: (runner.given or {}).get(section) or AtlasDataset(runner.root, section, progress=False)
        for section in ("test",)
    }
    data = {name: new_pair(each) for name, each in {"train": runner.training, **sections}.items()}
    own = Scorer(
        {**arm.config["scoring"], "sections": ["test"], "items": None}, runner.results, datasets=data
    )
    made = own(network, tokenizer, [LIKE])
    beside = {key.replace(LIKE, NEW_PAIR): value for key, value in made["baselines"].items()}
    found["baselines"] |= beside
    found["more_items"] = {f"test/{NEW_PAIR}": made["items"]}
    return {key.replace(LIKE, NEW_PAIR): value for key, value in made["scores"].items()}


def _bytes(picture: Any) -> bytes:
    assert isinstance(picture, Tensor)
    return picture.contiguous().numpy().tobytes()
