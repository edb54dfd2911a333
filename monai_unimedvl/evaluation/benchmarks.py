# SPDX-License-Identifier: Apache-2.0
"""The atlas benchmark: every held-out item answered or drawn once, scored beside its baselines.

    report = evaluate(network, tokenizer, limit=48)
    print(report.table(groups=False))

Who watches a training run builds one `AtlasBenchmark` and calls its `run` again and again: what is fitted on
real training items (baselines, the judge of drawings) is then fitted once.
"""

from __future__ import annotations

import platform
import zlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from monai_unimedvl.data.atlas import LEGENDS, TASKS, AtlasDataset
from monai_unimedvl.evaluation import baselines as trivial
from monai_unimedvl.evaluation.baselines import Draw, Item
from monai_unimedvl.evaluation.classifier import Judge, train_judge
from monai_unimedvl.evaluation.image import dice, labels_from_colours, nearest_correlation, psnr, ssim
from monai_unimedvl.evaluation.report import ALL, Report, explain, summarise
from monai_unimedvl.evaluation.text import exact_match, named_kind, token_f1
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

SECTIONS = ("test", "test_subject")
SMOOTHED = ("spmEPI", "spmPET", "spmSPECT")  # templates smoothed by 8 mm: little is left to sharpen
WORDS = {"vqa": 24, "caption": 160}  # new tokens at most
NEAR_COPY = 0.98  # correlation to a training image
EDIT_STEPS = (2, 1)  # the first is what the bundle ships


@dataclass(frozen=True)
class Drawing:
    """How images are drawn from words: network evaluations, and weight against the prompt without words."""

    steps: int = 20
    guidance: float = 2.0

    def __str__(self) -> str:
        words = f"{self.steps} step{'s' if self.steps > 1 else ''}"
        return f"{words}, guidance {self.guidance:g}" if self.guidance > 1 else words


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
        out: folder for report.json, table.md, predictions.jsonl and images.safetensors.

    Raises:
        ValueError: an unknown section or task; no item to score.
    """
    benchmark = AtlasBenchmark(
        root, sections=sections, tasks=tasks, permissive_only=permissive_only, seed=seed, progress=progress
    )
    report = benchmark.run(
        network, tokenizer, limit=limit, steps=steps, drawing=drawing, batch=batch, progress=progress
    )
    if out is not None:
        report.save(out)
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
    ) -> Report:
        """Score one network; the arguments are those of `evaluate`.

        Raises:
            ValueError: no item to score.
        """
        steps = (steps,) if isinstance(steps, int) else tuple(steps)
        drawing = drawing or Drawing()
        chosen = {
            (s, t): found for s in self.sections for t in self.tasks if (found := self.choose(s, t, limit))
        }
        if not chosen:
            raise ValueError(
                f"Nothing to score: no items of {', '.join(self.tasks)} in {', '.join(self.sections)}; "
                f"absent sources are {', '.join(self.missing) or 'none'}: run `unimedvl data fetch-atlas`."
            )
        predictions: list[dict[str, Any]] = []
        images: dict[str, Tensor] = {}
        was_training = network.training
        network.eval()
        bar = tqdm(total=sum(map(len, chosen.values())), unit=" items", disable=not progress, leave=False)
        try:
            for (section, task), items in chosen.items():
                bar.set_description(f"{task} {section}")
                if task in WORDS:
                    predictions += self._read(network, tokenizer, task, items, batch)
                plans = _plans(task, steps, drawing)
                for plan in plans:
                    name = f"{section}/{task}/{plan}"
                    images[name] = drawn = self._draw(network, tokenizer, items, plan, batch)
                    score = self._judge_drawings if task == "text-to-image" else self._score_edits
                    for place, one in enumerate(score(network, task, items, drawn.float() / 255)):
                        if plan is not plans[0]:
                            one["groups"] = [group for group in one["groups"] if group.startswith(ALL)]
                        predictions.append(one | {"setting": str(plan), "image": [name, place]})
                bar.update(len(items))
        finally:
            bar.close()
            network.train(was_training)
        about = {
            "benchmark": "atlas-v1", "sections": self.sections, "tasks": self.tasks, "limit": limit,
            "seed": self.seed, "edit_steps": steps, "drawing": str(drawing),
            "missing_sources": self.missing, "parameters": sum(p.numel() for p in network.parameters()),
            "judge": self.judge_accuracy() if any("text-to-image" in key for key in chosen) else {},
            "torch": torch.__version__.split("+")[0], "python": platform.python_version(),
        }  # fmt: skip
        about["notes"] = explain(about)
        return Report(summarise(predictions, seed=self.seed), predictions, about, images)

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
                named = self.judge.name(_truth(items))
                right = [pair == _kind(item) for pair, item in zip(named, items, strict=True)]
                found[section] = sum(right) / len(right)
        return found

    @cached_property
    def judge(self) -> Judge:
        """The classifier of plane and contrast, trained on the real training images."""
        items = self._items["train", "text-to-image"]
        kinds = [_kind(item) for item in items]
        return train_judge(_truth(items), [k for k, _ in kinds], [p for _, p in kinds], seed=self.seed)

    def _read(
        self, network: UniMedVL, tokenizer: Tokenizer, task: str, items: Sequence[Item], batch: int
    ) -> list[dict[str, Any]]:
        inferer = TextInferer(tokenizer, max_new_tokens=WORDS[task])
        answers = [
            str(answer)
            for part in _batches(items, batch)
            for answer in inferer([_prompt(i) for i in part], network)
        ]
        blind = trivial.majority(self._items["train", task], lambda item: str(item["question"]))
        found = []
        for item, said in zip(items, answers, strict=True):
            guess, truth = blind.get(item["question"], ""), item["truth"]
            scores, guesses = (_text_scores(task, text, item) for text in (said, guess))
            found.append(
                _record(item, groups=[item["question"]] if item["question"] else [])
                | {"setting": "", "said": said, "truth": truth, "scores": scores, "ceiling": {}}
                | {"baselines": {metric: {"blind": score} for metric, score in guesses.items()}}
            )
        return found

    def _draw(
        self, network: UniMedVL, tokenizer: Tokenizer, items: Sequence[Item], plan: Drawing, batch: int
    ) -> Tensor:
        """One image for each item, from its own seed: (N, 3, H, W) uint8; what is saved is what is scored."""
        drawn = []
        for part in _batches(items, batch):
            inferer = ImageInferer(
                tokenizer, size=tuple(part[0]["truth"].shape[1:]), steps=plan.steps,
                guidance=Guidance(text=plan.guidance), seed=[self._number(item) for item in part],
            )  # fmt: skip
            drawn += inferer([_prompt(item) for item in part], network)
        return (torch.stack(drawn).cpu().clamp(0, 1) * 255).round().to(torch.uint8)

    def _score_edits(
        self, network: UniMedVL, task: str, items: Sequence[Item], drawn: Tensor
    ) -> Iterable[dict[str, Any]]:
        truth = _truth(items)
        scores = _image_scores(task, drawn, truth)
        guesses = {
            name: _image_scores(task, torch.stack([draw(item) for item in items]), truth)
            for name, draw in self._baselines(task).items()
        }
        ceiling = _image_scores(task, _reconstruct(network, truth), truth)
        for n, item in enumerate(items):
            groups = [item["source"]]
            if task == "sr4":
                smooth = item["source"] in SMOOTHED
                groups = ["all, smoothed templates" if smooth else "all, not smoothed", *groups]
            yield _record(item, groups) | {
                "scores": {metric: float(values[n]) for metric, values in scores.items()},
                "ceiling": {metric: float(values[n]) for metric, values in ceiling.items()},
                "baselines": {
                    metric: {name: float(guess[metric][n]) for name, guess in guesses.items()}
                    for metric in scores
                },
            }

    def _judge_drawings(
        self, network: UniMedVL, task: str, items: Sequence[Item], drawn: Tensor
    ) -> Iterable[dict[str, Any]]:
        truth, bank = _truth(items), _truth(self._items["train", task])
        named, real = self.judge.name(drawn), self.judge.name(truth)
        near, real_near = nearest_correlation(drawn, bank), nearest_correlation(truth, bank)
        kinds = [_kind(item) for item in self._items["train", task]]
        usual = max(sorted(set(kinds)), key=kinds.count)
        for n, item in enumerate(items):
            scores = _kind_scores(named[n], _kind(item)) | {"near copy": float(near[n] > NEAR_COPY)}
            guesses = {
                metric: {"usual kind": score} for metric, score in _kind_scores(usual, _kind(item)).items()
            }
            guesses["near copy"] = {"held-out real images": float(real_near[n] > NEAR_COPY)}
            yield _record(item, [item["contrast"]]) | {
                "words": _prompt(item)[0], "named": list(named[n]), "nearest": float(near[n]),
                "scores": scores, "baselines": guesses, "ceiling": _kind_scores(real[n], _kind(item)),
            }  # fmt: skip

    def _baselines(self, task: str) -> dict[str, Draw]:
        """Name -> what draws without a model; fitted at first use, where there are training items."""
        if task not in self._fits:
            self._fits[task] = trivial.fit(task, self._items["train", task])
        return self._fits[task]

    def _number(self, item: Item) -> int:
        return zlib.crc32(f"{self.seed} {item['id']}".encode())


def _plans(task: str, steps: Sequence[int], drawing: Drawing) -> list[Drawing]:
    """How a task's images are drawn, one way after the other."""
    if task in WORDS:
        return []
    return [drawing] if task == "text-to-image" else [Drawing(count, 1.0) for count in steps]


def _image_scores(task: str, images: Tensor, truth: Tensor) -> dict[str, Tensor]:
    """Metric -> score of each image, (N, 3, H, W) twice -> (N,)"""
    if task not in LEGENDS:
        return {"PSNR": psnr(images, truth), "SSIM": ssim(images, truth)}
    legend = LEGENDS[task]
    each = dice(
        labels_from_colours(images, legend), labels_from_colours(truth, legend), len(legend)
    )  # (N, K)
    scores = {"Dice": each.nanmean(1)}
    if task == "seg-tissue":
        scores |= {f"Dice {name}": each[:, k] for k, name in enumerate(legend)}
    return scores


def _text_scores(task: str, said: str, item: Item) -> dict[str, float]:
    if task == "vqa":
        return {"exact match": exact_match(said, item["truth"])}
    return {
        "token F1": token_f1(said, item["truth"]),
        "contrast and plane": float(named_kind(said) == _kind(item)),
    }


def _kind_scores(named: tuple[str, str], truth: tuple[str, str]) -> dict[str, float]:
    pairs = {
        "contrast and plane": named == truth,
        "contrast": named[0] == truth[0],
        "plane": named[1] == truth[1],
    }
    return {metric: float(right) for metric, right in pairs.items()}


@torch.no_grad()
def _reconstruct(network: UniMedVL, images: Tensor) -> Tensor:
    """Through the autoencoder and back: (N, 3, H, W) in [0, 1] -> the same"""
    weight = network.decoder.embed.weight
    parts = [network.autoencoder(part.to(weight) * 2 - 1).float().cpu() for part in images.split(64)]
    return torch.cat(parts).add(1).div(2).clamp(0, 1)


def _batches(items: Sequence[Item], batch: int) -> Iterable[Sequence[Item]]:
    return (items[start : start + batch] for start in range(0, len(items), batch))


def _prompt(item: Item) -> list[Any]:
    return list(item["turns"][0].parts)


def _kind(item: Item) -> tuple[str, str]:
    return str(item["contrast"]), str(item["plane"])


def _truth(items: Sequence[Item]) -> Tensor:
    return torch.stack([item["truth"] for item in items])


def _record(item: Item, groups: Sequence[str]) -> dict[str, Any]:
    names = ("id", "task", "section", "source", "contrast", "plane")
    return {name: item[name] for name in names} | {"groups": list(groups)}
