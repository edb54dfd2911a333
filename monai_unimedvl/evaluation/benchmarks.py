# SPDX-License-Identifier: Apache-2.0
"""The atlas benchmark: every held-out item answered or drawn once, scored beside its baselines.

    report = evaluate(network, tokenizer, limit=48)
    print(report.table(groups=False))

Who watches a training run builds one `AtlasBenchmark` and calls its `run` again and again: what is fitted on
real training items (baselines, the judge of drawings) is then fitted once.
"""

from __future__ import annotations

import zlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from monai_unimedvl.data.atlas import TASKS, AtlasDataset
from monai_unimedvl.evaluation import baselines as trivial
from monai_unimedvl.evaluation import drawn_sets, examples, volumes
from monai_unimedvl.evaluation.asking import EDITING, Drawing, Engine, Kept, Made, Request, here, weights_hash
from monai_unimedvl.evaluation.atlas_scores import (
    NEAR_COPY,
    image_scores,
    kind_of,
    kind_scores,
    reconstruct,
    text_scores,
    truths,
)
from monai_unimedvl.evaluation.baselines import Beside, Draw, Item
from monai_unimedvl.evaluation.classifier import Judges, train_judges
from monai_unimedvl.evaluation.image import nearest_correlation
from monai_unimedvl.evaluation.items import WORDS, asked, digest, plans, prompt, record
from monai_unimedvl.evaluation.publishing import publish
from monai_unimedvl.evaluation.report import Report, explain, summarise
from monai_unimedvl.evaluation.tables import ALL
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

SECTIONS = ("test", "test_subject")
SMOOTHED = ("spmEPI", "spmPET", "spmSPECT")  # templates smoothed by 8 mm: little is left to sharpen
EDIT_STEPS = (EDITING.steps, 1)  # the first is what the bundle ships
BENCHMARK = "atlas-v1"


def evaluate(
    network: UniMedVL,
    tokenizer: Tokenizer,
    *,
    root: str | Path | None = None,
    sections: Sequence[str] = SECTIONS,
    tasks: Sequence[str] | None = None,
    limit: int | None = None,
    steps: int | Sequence[int] = EDIT_STEPS,
    drawing: Drawing | None = None,
    seed: int = 0,
    batch: int = 64,
    permissive_only: bool = False,
    out: str | Path | None = None,
    weights: str = "",
    engine: Engine | None = None,
    name: str = "model",
    progress: bool = True,
) -> Report:
    """Score a network on the held-out items of the atlas; the same call gives the same numbers.

    Args:
        root: the atlas cache; None is the default one.
        tasks: some of `data.atlas.TASKS`; None for all but "slice-group".
        limit: items of each task and section (VQA: of each question); None for all.
        steps: network evaluations of an edit; of several numbers the first is the default and gets all rows.
        drawing: how text-to-image draws.
        seed: of noise, choice of items under `limit`, intervals.
        batch: prompts at a time.
        permissive_only: leave out sources under GPL, in items and baselines.
        out: folder for report, page and cards. What is made is kept there as it comes: a killed run goes on.
        weights: sha256 of the weights, as marks and predictions name it; computed if it is not given.
        engine: who answers; None for this process. name: of the model, for page and cards.

    Raises:
        ValueError: an unknown section or task; no item to score; `out` holds another run, or cannot be used.
    """
    benchmark = AtlasBenchmark(
        root, sections=sections, tasks=tasks, permissive_only=permissive_only, seed=seed, progress=progress
    )
    report = benchmark.run(
        network, tokenizer, limit=limit, steps=steps, drawing=drawing, batch=batch, progress=progress,
        out=out, weights=weights, engine=engine,
    )  # fmt: skip
    if out is not None:
        report.save(out)
        publish(report, out, name=name)
        Kept(out, None).clear()
    return report


class AtlasBenchmark:
    """The items to score and what is fitted on training items, to be run on one network after another.

    Args:
        root, sections, tasks, permissive_only, seed: see `evaluate`.
        datasets: section -> items as `AtlasDataset` gives them, "train" among them, in place of the atlas.
    """

    def __init__(
        self,
        root: str | Path | None = None,
        *,
        sections: Sequence[str] = SECTIONS,
        tasks: Sequence[str] | None = None,
        permissive_only: bool = False,
        seed: int = 0,
        datasets: Mapping[str, Any] | None = None,
        progress: bool = True,
    ) -> None:
        self.tasks = [task for task in TASKS if task != "slice-group" and (tasks is None or task in tasks)]
        if unknown := set(tasks or ()) - set(self.tasks):
            known = ", ".join(task for task in TASKS if task != "slice-group")
            raise ValueError(
                f"AtlasBenchmark got task {min(unknown)!r}, expected some of {known}: name some of these."
            )
        self.sections, self.seed = tuple(sections), seed
        self.missing: list[str] = []
        self._items: dict[tuple[str, str], list[Item]] = defaultdict(list)
        for section in ("train", *self.sections):
            if datasets is not None:
                found = datasets[section]
            else:
                found = AtlasDataset(
                    root, section, tasks=self.tasks, permissive_only=permissive_only, progress=progress
                )
                self.missing = found.missing
            for index in range(len(found)):
                item = found[index]
                self._items[section, item["task"]].append(item)
        self._fits: dict[str, dict[str, Draw]] = {}

    def run(
        self,
        network: UniMedVL,
        tokenizer: Tokenizer,
        *,
        limit: int | None = None,
        steps: int | Sequence[int] = EDIT_STEPS,
        drawing: Drawing | None = None,
        batch: int = 64,
        progress: bool = True,
        out: str | Path | None = None,
        weights: str = "",
        engine: Engine | None = None,
        only: Collection[str] | None = None,
    ) -> Report:
        """Score one network; the arguments are those of `evaluate`.

        Args:
            only: ids of the items to score, in place of `limit`.

        Raises:
            ValueError: no item to score; `out` holds answers of another run.
        """
        steps = (steps,) if isinstance(steps, int) else tuple(steps)
        drawing = drawing or Drawing()
        named = {(s, t): self.choose(s, t, limit) for s in self.sections for t in self.tasks}
        if only is not None:
            named = {key: [item for item in found if item["id"] in only] for key, found in named.items()}
        chosen = {key: found for key, found in named.items() if found}
        if not chosen:
            raise ValueError(
                f"Nothing to score: no items of {', '.join(self.tasks)} in {', '.join(self.sections)}; "
                f"absent sources are {', '.join(self.missing) or 'none'}: run `unimedvl data fetch-atlas`."
            )
        about = {
            "benchmark": BENCHMARK, "sections": self.sections, "tasks": self.tasks, "limit": limit,
            "seed": self.seed, "edit_steps": steps, "drawing": str(drawing), "batch": batch,
            "weights": weights or weights_hash(network), "items": digest(chosen),
            "torch": torch.__version__.split("+")[0],
        }  # fmt: skip
        drawn_by = {(s, t): plans(t, steps, drawing) for s, t in chosen}
        was_training = network.training
        network.eval()
        try:
            made = self._made(
                chosen, drawn_by, batch, Kept(out, about), engine or here(network, tokenizer), progress
            )
            predictions: list[dict[str, Any]] = []
            images: dict[str, Tensor] = {}
            held: dict[tuple[str, str], Beside] = {}  # of what is scored as a whole further down
            for (section, task), items in chosen.items():
                if task in WORDS:
                    predictions += self._score_words(task, items, made[section, task, None])
                    continue
                beside = self._beside(network, task, items)
                if task in ("text-to-image", volumes.TASK):
                    held[section, task] = beside
                score = self._judge_drawings if task == "text-to-image" else self._score_edits
                for plan in drawn_by[section, task]:
                    name = f"{section}/{task}/{plan}"
                    images[name] = drawn = torch.cat(
                        [one.images for one in made[section, task, plan] if one.images is not None]
                    )
                    for place, one in enumerate(score(task, items, drawn.float() / 255, beside)):
                        if plan is not drawn_by[section, task][0]:
                            one["groups"] = [group for group in one["groups"] if group.startswith(ALL)]
                        predictions.append(one | {"setting": str(plan), "image": [name, place]})
        finally:
            network.train(was_training)
        about |= {
            "missing_sources": self.missing,
            "parameters": sum(p.numel() for p in network.parameters()),
            "judge": self.judge_accuracy() if any("text-to-image" in key for key in chosen) else {},
        }
        rows = summarise(predictions, seed=self.seed)
        if any(task == "text-to-image" for _, task in chosen):
            rows += drawn_sets.measure(
                images, held, truths(self._items["train", "text-to-image"]), self.judge.kind, about
            )
        for (section, task), items in chosen.items():
            if task == volumes.TASK:
                first = str(plans(task, steps, drawing)[0])
                same = [one for one in predictions if (one["section"], one["task"]) == (section, task)]
                rows += volumes.measure(
                    network, tokenizer, items,
                    {one["id"]: one["scores"]["Dice"] for one in same if one["setting"] == first},
                    section=section, setting=first, steps=steps[0], beside=held[section, task].drawn,
                    seed=self.seed,
                )  # fmt: skip
        about["notes"] = explain(about)
        known = {item["id"]: item for found in chosen.values() for item in found}
        return Report(rows, predictions, about, images, examples.choose(predictions, known, images))

    def _made(
        self, chosen: Mapping[tuple[str, str], Sequence[Item]],
        drawn_by: Mapping[tuple[str, str], Sequence[Drawing | None]], batch: int, kept: Kept, engine: Engine,
        progress: bool,
    ) -> dict[tuple[str, str, Drawing | None], list[Made]]:  # fmt: skip
        """What the network made of all items, in their order: from the disk what is there, the rest asked."""
        parts = {
            f"{section}/{task}/{plan or 'words'}/{start:06d}": (section, task, plan, start)
            for (section, task), items in chosen.items()
            for plan in drawn_by[section, task]
            for start in range(0, len(items), batch)
        }

        def build(name: str) -> Request:
            section, task, plan, start = parts[name]
            part = chosen[section, task][start : start + batch]
            prompts = [prompt(item) for item in part]
            if plan is None:
                return Request(prompts, words=WORDS[task])
            height, width = part[0]["truth"].shape[1:]
            return Request(
                prompts, size=(height, width), drawing=plan, seeds=tuple(self._number(item) for item in part)
            )

        found = {name: kept.get(name) for name in parts}
        with tqdm(total=len(parts), unit=" batches", disable=not progress, leave=False) as bar:
            bar.update(kept.found)
            for name, made in engine([name for name in parts if found[name] is None], build):
                kept.put(name, made)
                found[name] = made
                bar.set_description(name.rpartition("/")[0])
                bar.update()
        gathered: dict[tuple[str, str, Drawing | None], list[Made]] = defaultdict(list)
        for name, (section, task, plan, start) in parts.items():
            answer, wanted = found[name], len(chosen[section, task][start : start + batch])
            assert answer is not None and len(answer) == wanted, name
            gathered[section, task, plan].append(answer)
        return gathered

    def choose(self, section: str, task: str, limit: int | None) -> list[Item]:
        """The items to score: all, or `limit` of them, drawn by seed and id; questions only if balanced."""
        items = [item for item in self._items[section, task] if task != "vqa" or item["balanced"]]
        if limit is not None:
            items.sort(key=self._number)
        kept: dict[str, list[Item]] = defaultdict(list)
        for item in items:
            if limit is None or len(kept[item["question"]]) < limit:
                kept[item["question"]].append(item)
        return [item for found in kept.values() for item in found]

    def judge_accuracy(self) -> dict[str, float]:
        """Share of real images of each section of which the judge names plane and contrast right."""
        found = {}
        for section in self.sections:
            if items := self._items[section, "text-to-image"]:
                named = self.judge.kind.name(truths(items))
                right = [pair == kind_of(item)[:2] for pair, item in zip(named, items, strict=True)]
                found[section] = sum(right) / len(right)
        return found

    @cached_property
    def judge(self) -> Judges:
        """The classifiers of contrast, plane and level, trained on the real training images."""
        items = self._items["train", "text-to-image"]
        return train_judges(truths(items), [kind_of(item) for item in items], seed=self.seed)

    def baselines_of(self, task: str) -> dict[str, Draw]:
        """Name -> what draws without a model; fitted at first use, where there are training items."""
        if task not in self._fits:
            self._fits[task] = trivial.fit(task, self._items["train", task])
        return self._fits[task]

    def _score_words(
        self, task: str, items: Sequence[Item], made: Sequence[Made]
    ) -> Iterable[dict[str, Any]]:
        answers = [said for one in made for said in one.said]
        blind = trivial.majority(self._items["train", task], lambda item: str(item["question"]))
        for item, said in zip(items, answers, strict=True):
            guess, truth = blind.get(item["question"], ""), item["truth"]
            scores, guesses = (text_scores(task, text, item) for text in (said.text, guess))
            yield (
                record(item, groups=[item["question"]] if item["question"] else [])
                | {"setting": "", "asked": asked(item), "said": said.text, "truth": truth, "scores": scores}
                | {"logprob": said.logprob, "tokens": said.tokens, "stop_reason": said.stop_reason}
                | {"baselines": {metric: {"blind": score} for metric, score in guesses.items()}}
                | {"ceiling": {}, "question_type": item["question"], "seed": self.seed}
            )

    def _beside(self, network: UniMedVL, task: str, items: Sequence[Item]) -> Beside:
        """What stands beside the drawings of some items in every setting, made once."""
        truth = truths(items)
        drawn = {
            name: torch.stack([draw(item) for item in items])
            for name, draw in self.baselines_of(task).items()
        }
        if task == "text-to-image":  # judged, not compared pixel by pixel
            return Beside(truth, drawn)
        scores = {name: image_scores(task, images, truth) for name, images in drawn.items()}
        return Beside(truth, drawn, scores, image_scores(task, reconstruct(network, truth), truth))

    def _score_edits(
        self, task: str, items: Sequence[Item], drawn: Tensor, beside: Beside
    ) -> Iterable[dict[str, Any]]:
        scores = image_scores(task, drawn, beside.truth)
        for n, item in enumerate(items):
            groups = [item["source"]]
            if task == "sr4":
                smooth = item["source"] in SMOOTHED
                groups = ["all, smoothed templates" if smooth else "all, not smoothed", *groups]
            yield record(item, groups) | {
                "asked": asked(item), "seed": self._number(item),
                "scores": {metric: float(values[n]) for metric, values in scores.items()},
                "ceiling": {metric: float(values[n]) for metric, values in beside.ceiling.items()},
                "baselines": {
                    metric: {name: float(guess[metric][n]) for name, guess in beside.scores.items()}
                    for metric in scores
                },
            }  # fmt: skip

    def _judge_drawings(
        self, task: str, items: Sequence[Item], drawn: Tensor, beside: Beside
    ) -> Iterable[dict[str, Any]]:
        truth, bank = beside.truth, truths(self._items["train", task])
        named, real = self.judge.name(drawn), self.judge.name(truth)
        near, real_near = nearest_correlation(drawn, bank), nearest_correlation(truth, bank)
        kinds = [kind_of(item) for item in self._items["train", task]]
        guessed = {"usual kind": [max(sorted(set(kinds)), key=kinds.count)] * len(items)}
        guessed |= {name: self.judge.name(images) for name, images in beside.drawn.items()}
        for n, item in enumerate(items):
            scores = kind_scores(named[n], kind_of(item)) | {"near copy": float(near[n] > NEAR_COPY)}
            told = {name: kind_scores(guess[n], kind_of(item)) for name, guess in guessed.items()}
            guesses = {
                metric: {name: each[metric] for name, each in told.items()}
                for metric in scores if metric != "near copy"
            }  # fmt: skip
            guesses["near copy"] = {"held-out real images": float(real_near[n] > NEAR_COPY)}
            yield record(item, [item["contrast"]]) | {
                "asked": asked(item), "seed": self._number(item),
                "named": list(named[n]), "nearest": float(near[n]),
                "scores": scores, "baselines": guesses, "ceiling": kind_scores(real[n], kind_of(item)),
            }  # fmt: skip

    def _number(self, item: Item) -> int:
        return zlib.crc32(f"{self.seed} {item['id']}".encode())
