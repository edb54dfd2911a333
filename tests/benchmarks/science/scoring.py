# SPDX-License-Identifier: Apache-2.0
"""Scores of an arm by the package's own benchmark, item by item, as small as can be committed.

Items stand once in `results/items-DIGEST.json`, as [id, picture]; a result has, for each section and task,
each setting and each metric, a list of numbers in the same order (null where a score is undefined).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.atomic import write
from monai_unimedvl.evaluation import AtlasBenchmark, Drawing, Report
from monai_unimedvl.evaluation.asking import Engine
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer

DIGITS = 4
KEPT = ("exact match", "token F1", "contrast and plane", "near copy", "PSNR", "SSIM", "Dice")


class Scorer:
    """Benchmarks of some tasks, kept from one arm to the next: what is fitted on real items is fitted once.

    Args:
        root: the atlas cache. datasets: in place of the atlas, see `AtlasBenchmark`.
        items: folder of the lists of items.
    """

    def __init__(
        self, config: Mapping[str, Any], items: Path, *, root: str | None = None,
        datasets: Mapping[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.config, self.items, self.root, self.datasets = config, items, root, datasets
        self._benchmarks: dict[tuple[str, ...], AtlasBenchmark] = {}

    def benchmark(self, tasks: Sequence[str]) -> AtlasBenchmark:
        """The benchmark of some tasks."""
        key = tuple(tasks)
        if key not in self._benchmarks:
            self._benchmarks[key] = AtlasBenchmark(
                self.root,
                sections=self.config["sections"],
                tasks=tasks,
                datasets=self.datasets,
                progress=False,
            )
        return self._benchmarks[key]

    def __call__(
        self, network: UniMedVL, tokenizer: Tokenizer, tasks: Sequence[str], *, engine: Engine | None = None,
        edit_steps: Sequence[int] | None = None, drawings: Sequence[Drawing] | None = None,
    ) -> dict[str, Any]:  # fmt: skip
        """{"items": digest, "scores": {section/task: {setting: {metric: [...]}}}, "baselines": {...}}"""
        how = self.config
        steps = tuple(edit_steps or (how["edit_steps"],))
        reports = []
        words = [task for task in tasks if task == "vqa"]
        others = [task for task in tasks if task not in ("vqa", "text-to-image")]
        for part, limit in ((words, how["questions"]), (others, how["items"])):
            if part:
                run = self.benchmark(part).run(
                    network, tokenizer, limit=limit, steps=steps, progress=False, engine=engine
                )
                reports.append(run)
        if "text-to-image" in tasks:
            for drawing in drawings or (Drawing(**how["drawing"]),):
                reports.append(
                    self.benchmark(["text-to-image"]).run(
                        network, tokenizer, limit=how["items"], drawing=drawing, progress=False, engine=engine
                    )
                )
        truth: dict[str, Tensor] = {}
        if how.get("sharpness"):
            for part in (others, [task for task in tasks if task == "text-to-image"]):
                for section, task in product(how["sections"], part):
                    chosen = self.benchmark(part).choose(section, task, how["items"])
                    truth |= {
                        item["id"]: item["truth"] for item in chosen if isinstance(item["truth"], Tensor)
                    }
        return self.compact(reports, truth)

    def compact(self, reports: Sequence[Report], truth: Mapping[str, Tensor]) -> dict[str, Any]:
        """What is committed of some reports; drawings with a truth here also get their sharpness."""
        items: dict[str, list[list[str]]] = {}
        scores: dict[str, dict[str, dict[str, list[float | None]]]] = {}
        beside: dict[str, dict[str, float]] = {}
        for report in reports:
            parts: dict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
            for one in report.predictions:
                parts[f"{one['section']}/{one['task']}", one["setting"]].append(one)
            for (place, setting), found in parts.items():
                listed = [[one["id"], one["picture"]] for one in found]
                assert items.setdefault(place, listed) == listed, f"{place} was scored on other items"
                scores.setdefault(place, {})[setting] = {
                    metric: [_number(one["scores"][metric]) for one in found]
                    for metric in found[0]["scores"]
                    if metric in KEPT
                }
                if found[0]["id"] in truth:
                    drawn = torch.stack([report.images[one["image"][0]][one["image"][1]] for one in found])
                    shares = sharpness(drawn.float() / 255, torch.stack([truth[one["id"]] for one in found]))
                    scores[place][setting]["sharpness"] = [_number(float(x)) for x in shares]
            for row in report.rows:
                if row.group == "all" and row.metric in KEPT and row.baselines:
                    place = f"{row.section}/{row.task}/{row.metric}"
                    beside[place] = {k: round(float(v), DIGITS) for k, v in row.baselines.items()}
                    if row.ceiling is not None:
                        beside[place]["ceiling"] = round(float(row.ceiling), DIGITS)
        content = json.dumps(items, indent=0).encode()
        digest = hashlib.sha256(content).hexdigest()[:12]
        path = self.items / f"items-{digest}.json"
        if not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            write(path, content + b"\n")
        return {"items": digest, "scores": scores, "baselines": beside}


def sharpness(images: Tensor, truth: Tensor) -> Tensor:
    """Energy of the differences of neighbours as a share of the truth's: (N, 3, H, W) twice -> (N,)"""
    ours, theirs = (
        x.diff(dim=-1).square().mean((1, 2, 3)) + x.diff(dim=-2).square().mean((1, 2, 3))
        for x in (images, truth)
    )
    return ours / theirs


def _number(value: float | None) -> float | None:
    return None if value is None or not math.isfinite(value) else round(float(value), DIGITS)
