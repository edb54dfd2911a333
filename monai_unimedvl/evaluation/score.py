# SPDX-License-Identifier: Apache-2.0
"""A few numbers that follow a training run: the atlas benchmark on some held-out items."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from monai_unimedvl.evaluation.asking import Drawing
from monai_unimedvl.evaluation.benchmarks import AtlasBenchmark
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer


class AtlasScore:
    """A network -> its first metric on each task, for `training.callbacks.Scores`.

    Args:
        tokenizer: of the network.
        tasks: of `data.atlas.TASKS`; None for all.
        limit: items of each task (VQA: of each question).
        section: "val" is held out and no part of the published scores.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        tasks: Sequence[str] | None = None,
        *,
        limit: int = 8,
        root: str | Path | None = None,
        section: str = "val",
        permissive_only: bool = False,
        seed: int = 0,
    ) -> None:
        self.tokenizer, self.limit = tokenizer, limit
        self.benchmark = AtlasBenchmark(
            root, sections=(section,), tasks=tasks, permissive_only=permissive_only, seed=seed,
            progress=False,
        )  # fmt: skip

    def __call__(self, network: UniMedVL) -> dict[str, float]:
        """{"vqa exact match": 0.7, "sr4 PSNR": 26.1, ...}"""
        report = self.benchmark.run(
            network, self.tokenizer, limit=self.limit, steps=4, drawing=Drawing(8), progress=False
        )
        found: dict[str, float] = {}
        for row in report.rows:
            if row.group == "all" and not any(name.startswith(f"{row.task} ") for name in found):
                found[f"{row.task} {row.metric}"] = row.value
        return found
