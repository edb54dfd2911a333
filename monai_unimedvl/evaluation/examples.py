# SPDX-License-Identifier: Apache-2.0
"""The items that a report shows: the worst, middle and best drawing of each task, the surest wrong answers.

They are chosen by score, not by eye, and say so.
  H, W pixels
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from monai_unimedvl.evaluation.baselines import Item, shown
from monai_unimedvl.evaluation.page import Verdict, against

MAIN = {"PSNR": "{:.1f} dB", "Dice": "Dice {:.2f}", "contrast and plane": "{}"}
T = TypeVar("T")
GRID = 16  # drawings from words
ANSWERS = 6


@dataclass(frozen=True)
class Example:
    """One item as a report shows it.

    Args:
        why: why it is shown, such as "worst".
        given: the image given, (3, H, W) in [0, 1], or None.
        drawn, truth: images, None for words.
        score, baseline: as text.
        asked, said, wanted: words. confidence: of the answer.
    """

    task: str
    section: str
    id: str
    why: str
    given: Tensor | None = None
    drawn: Tensor | None = None
    truth: Tensor | None = None
    score: str = ""
    baseline: str = ""
    good: Verdict = None
    asked: str = ""
    said: str = ""
    wanted: str = ""
    confidence: float | None = None
    seed: int = 0
    steps: int | None = None
    guidance: float | None = None


def choose(
    predictions: Sequence[Mapping[str, Any]], items: Mapping[str, Item], images: Mapping[str, Tensor]
) -> list[Example]:
    """Examples of every task and section, in the order of the predictions.

    Args:
        predictions: of the default setting of each task. items: id -> item. images: as a report has them.
    """
    found: list[Example] = []
    for task, section in dict.fromkeys((one["task"], one["section"]) for one in predictions):
        some = [one for one in predictions if (one["task"], one["section"]) == (task, section)]
        some = [one for one in some if one["setting"] == some[0]["setting"]]
        if task == "text-to-image":
            step = max(1, len(some) // GRID)
            found += [_drawn(one, "", items, images) for one in some[::step][:GRID]]
        elif "image" in some[0]:
            found += _by_score(some, items, images)
        elif task == "vqa":
            found += _answers(some, items)
        else:
            chosen = ranked(some, lambda one: one["scores"]["token F1"])
            found += [_said(one, why, items) for why, one in chosen]
    return found


def ranked(some: Sequence[T], score: Callable[[T], float | None]) -> list[tuple[str, T]]:
    """The worst, the middle and the best of what has a score, each once, and which it is."""
    values = [(value, place) for place, one in enumerate(some) if (value := score(one)) is not None]
    order = [some[place] for value, place in sorted(values) if not math.isnan(value)]
    if not order:
        return []
    places = {"worst": 0, "middle": len(order) // 2, "best": len(order) - 1}
    last = {at: why for why, at in places.items()}  # of one or two items the better word
    return [(why, order[at]) for at, why in last.items()]


def worst_of(predictions: Sequence[Mapping[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """task -> the worst item of each of its sources, the worst first; of the default setting of each task.

    Drawings go by the distance to the baseline that is best over the task, answers by how sure a wrong one
    was, descriptions by their labels, drawings from words by how much of contrast, plane and level is right.
    """
    default: dict[str, str] = {}
    by_task: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for one in predictions:
        if one["setting"] == default.setdefault(one["task"], one["setting"]):
            by_task[one["task"]].append(one)
    found: dict[str, list[dict[str, Any]]] = {}
    for task, some in by_task.items():
        name = _best_baseline(some)
        each: dict[str, dict[str, Any]] = {}
        for one in some:
            rank = _rank(one, name)
            if rank is not None and rank < each.get(one["source"], {"rank": math.inf})["rank"]:
                metric = next(iter(one["scores"]))
                told = {"metric": metric, "score": one["scores"][metric], "rank": round(rank, 6)}
                each[one["source"]] = {key: one[key] for key in ("id", "section", "source")} | told
        found[task] = sorted(each.values(), key=lambda one: float(one["rank"]))
    return found


def _best_baseline(some: Sequence[Mapping[str, Any]]) -> str:
    """The name of the baseline that is best over some items by their first metric, or ""."""
    metric = next(iter(some[0]["scores"]))
    sums: dict[str, float] = defaultdict(float)
    for one in some:
        for name, score in one["baselines"].get(metric, {}).items():
            sums[name] += 0.0 if score is None or math.isnan(score) else score
    return max(sums, key=lambda name: sums[name]) if sums else ""


def _rank(one: Mapping[str, Any], baseline: str) -> float | None:
    """How good an item is, less is worse; None for what is no failure, or no number."""
    scores = one["scores"]
    metric, score = next(iter(scores.items()))
    if one["task"] == "vqa":
        return None if score else -math.exp(one.get("logprob") or 0.0)
    if one["task"] == "caption":
        return float(scores.get("label F1", score))
    if one["task"] == "text-to-image":
        return float(sum(value for name, value in scores.items() if name != "near copy"))
    if score is None or math.isnan(score):
        return None
    other = one["baselines"].get(metric, {}).get(baseline)
    return float(score - other) if other is not None and not math.isnan(other) else float(score)


def difference(drawn: Tensor, truth: Tensor, most: float = 0.5) -> Tensor:
    """Absolute difference of two images (3, H, W), from black over red and yellow to white: (3, H, W)"""
    share = ((drawn - truth).abs().mean(0) / most).clamp(0, 1)  # (H, W)
    return torch.stack([share * 3, share * 3 - 1, share * 3 - 2]).clamp(0, 1)


def _by_score(
    some: Sequence[Mapping[str, Any]], items: Mapping[str, Item], images: Mapping[str, Tensor]
) -> list[Example]:
    metric = next(iter(some[0]["scores"]))
    chosen = ranked(some, lambda one: one["scores"][metric])
    return [_drawn(one, why, items, images) for why, one in chosen]


def _answers(some: Sequence[Mapping[str, Any]], items: Mapping[str, Item]) -> list[Example]:
    """The surest wrong answers, then the surest right ones of other questions."""
    sure = [one for one in some if one["logprob"] is not None]
    wrong = sorted((one for one in sure if not one["scores"]["exact match"]), key=lambda one: -one["logprob"])
    right = sorted((one for one in sure if one["scores"]["exact match"]), key=lambda one: -one["logprob"])
    found = []
    for why, ordered in (("surest wrong", wrong), ("surest right", right)):
        each = {one["question_type"]: one for one in reversed(ordered)}  # the first of each question
        best = sorted(each.values(), key=lambda one: -one["logprob"])
        found += [_said(one, why, items) for one in best[: ANSWERS // 2]]
    return found


def _drawn(
    one: Mapping[str, Any], why: str, items: Mapping[str, Item], images: Mapping[str, Tensor]
) -> Example:
    item, (name, place) = items[one["id"]], one["image"]
    metric = next(iter(one["scores"]))
    score, baselines = one["scores"][metric], one["baselines"][metric]
    shape = MAIN.get(metric, "{:.2f}")
    told = "" if one["task"] == "text-to-image" else shape.format(score)
    known = {k: v for k, v in baselines.items() if not math.isnan(v)}
    best = max(known.items(), key=lambda pair: pair[1]) if known and told else None
    words, _, guidance = one["setting"].partition(", guidance ")
    return Example(
        one["task"], one["section"], one["id"], why,
        None if one["task"] == "text-to-image" else shown(item),
        images[name][place].float() / 255, item["truth"], told,
        f"{best[0]} {shape.format(best[1])}" if best else "",
        None if best is None else against(score, best[1], shape),
        asked=one["asked"], seed=one["seed"], steps=int(words.split()[0]), guidance=float(guidance or 1),
    )  # fmt: skip


def _said(one: Mapping[str, Any], why: str, items: Mapping[str, Item]) -> Example:
    sure = None if one["logprob"] is None else math.exp(one["logprob"])
    right = bool(one["scores"].get("exact match", 0))
    return Example(
        one["task"], one["section"], one["id"], why, shown(items[one["id"]]),
        asked=one["asked"].replace("<image>", "").strip(), said=one["said"], wanted=one["truth"],
        confidence=sure, good=right if one["task"] == "vqa" else None,
        score="" if one["task"] == "vqa" else f"token F1 {one['scores']['token F1']:.2f}",
    )  # fmt: skip
