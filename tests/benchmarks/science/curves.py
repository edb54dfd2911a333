# SPDX-License-Identifier: Apache-2.0
"""The two questions that train nothing: the shipped nano under more and more pruning, and drawn in more ways.

Their results have the form of all others: for each setting the scores of the same items.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import prune  # the benchmark beside this folder: its way of asking

from monai_unimedvl.atomic import write
from monai_unimedvl.bundle import load
from monai_unimedvl.data.atlas_pictures import load_pictures
from monai_unimedvl.data.atlas_runs import runs
from monai_unimedvl.data.fetch import default_root
from monai_unimedvl.evaluation import Drawing
from monai_unimedvl.evaluation.asking import weights_hash

BLIND = "no image: always the commonest answer"  # as e.yaml names it


def measure(arm: Any, runner: Any, seed: int) -> dict[str, Any]:
    """The curve of an arm."""
    network, tokenizer = load(arm.config["bundle"])
    network.eval()
    found = _pruned if arm.config["curve"] == "pruning" else _drawn
    return {"weights": weights_hash(network), **found(arm, runner, network, tokenizer)}


def _drawn(arm: Any, runner: Any, network: Any, tokenizer: Any) -> dict[str, Any]:
    """Guidance and steps of drawings from words; steps of edits."""
    sweep = arm.config["sweep"]
    drawings = [Drawing(steps, guidance) for guidance in sweep["guidance"] for steps in sweep["steps"]]
    found: dict[str, Any] = runner.scorer(arm)(
        network, tokenizer, sweep["tasks"], edit_steps=sweep["edit_steps"], drawings=drawings
    )
    return found


def _pruned(arm: Any, runner: Any, network: Any, tokenizer: Any) -> dict[str, Any]:
    """Questions about runs of slices, more and more of whose tokens are dropped, by likeness or by chance."""
    sweep = arm.config["sweep"]
    pictures, _ = load_pictures(default_root() if runner.root is None else Path(runner.root))
    scores: dict[str, dict[str, dict[str, list[float]]]] = {}
    items: dict[str, list[list[str]]] = {}
    measured: dict[str, dict[str, float]] = {}
    for name, sections in sweep["sections"].items():
        place = f"{name}/runs of slices"
        found = list(runs(pictures, sections, length=prune.SLICES, stride=sweep["stride"]))
        items[place] = [
            [f"{run.slices[0].source}/run {n}/{asked.key}", f"{run.slices[0].source}/run {n}"]
            for n, run in enumerate(found)
            for asked in run.asked
        ]
        blind = prune.commonest([asked for run in found for asked in run.asked])
        ways: dict[str, Any] = {"all tokens": None}
        for share in sweep["shares"]:
            ways[f"{share:g} of the tokens, those that repeat"] = prune.PruneTokens(share)
            ways[f"{share:g} of the tokens, at random"] = prune.RandomTokens(share)
        scores[place] = {}
        for way, how in ways.items():
            right, dropped, seconds = prune.answers(found, network, tokenizer, how, range(prune.SLICES))
            scores[place][way] = {"exact match": [float(one) for one in right]}
            measured[f"{place}/{way}"] = {"dropped": round(dropped, 4), "cpu_seconds": round(seconds, 1)}
        scores[place][BLIND] = {"exact match": blind}
    content = json.dumps(items, indent=0, ensure_ascii=False).encode()
    digest = hashlib.sha256(content).hexdigest()[:12]
    write(runner.results / f"items-{digest}.json", content + b"\n")
    return {"items": digest, "scores": scores, "baselines": {}, "measured": measured}
