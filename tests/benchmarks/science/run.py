# SPDX-License-Identifier: Apache-2.0
"""Train, score and report what the configurations ask; what is done is not done again.

    python tests/benchmarks/science/run.py --only a b --seeds 1   # arms of two questions, seed 0
    python tests/benchmarks/science/run.py --report               # README.md, plots, the short table

A killed arm goes on from its last checkpoint. Checkpoints lie in the cache, results beside this file.
"""

from __future__ import annotations

import argparse
import hashlib
import logging
import subprocess
import sys
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from monai_unimedvl.data.atlas import AtlasDataset  # noqa: E402
from monai_unimedvl.data.fetch import default_root  # noqa: E402
from monai_unimedvl.evaluation.asking import weights_hash  # noqa: E402
from science import curves, joint, lessons, plan, report  # noqa: E402
from science.plan import Arm  # noqa: E402
from science.scoring import Scorer  # noqa: E402
from science.training import curve, fit, metered, start  # noqa: E402

logger = logging.getLogger("science")
MAKERS = ("curves", "lessons", "plan", "run", "scoring", "training")  # not what reports


class Runner:
    """Arms one after the other.

    Args:
        cache: folder of checkpoints. results: folder of what is committed. root: the atlas cache.
        datasets: section -> dataset, in place of the atlas.
    """

    def __init__(
        self, cache: Path, results: Path, *, root: str | None = None, datasets: dict[str, Any] | None = None
    ) -> None:
        self.cache, self.results, self.root, self.given = cache, results, root, datasets
        self._scorers: dict[str, Scorer] = {}
        self._training: Any = None

    @property
    def training(self) -> Any:
        """The training section of the atlas, read once."""
        if self._training is None:
            self._training = (
                self.given["train"] if self.given else AtlasDataset(self.root, "train", progress=False)
            )
        return self._training

    def scorer(self, arm: Arm) -> Scorer:
        """The scorer of an arm's scoring values; benchmarks are fitted once."""
        key = repr(arm.config["scoring"])
        if key not in self._scorers:
            self._scorers[key] = Scorer(
                arm.config["scoring"], self.results, root=self.root, datasets=self.given
            )
        return self._scorers[key]

    def run(self, arm: Arm, seed: int) -> bool:
        """Train and score an arm, or go on with it; False if its result is there already."""
        if plan.result(arm, seed, self.results) is not None:
            logger.info("%s, seed %d: done before", arm.name, seed)
            return False
        folder = self.cache / f"{arm.name}-{arm.trained}-seed{seed}"
        with metered(folder / "spent.json") as spent:
            found = (
                curves.measure(arm, self, seed) if "curve" in arm.config else self._train(arm, folder, seed)
            )
            seconds = round(spent(), 1)
        plan.save(
            {
                "arm": arm.name, "question": arm.letter, "seed": seed, "digest": arm.digest,
                "config": arm.config, "cpu_seconds": seconds, "about": circumstances(), **found,
            },
            plan.result_path(arm.name, seed, self.results),
        )  # fmt: skip
        logger.info("%s, seed %d: %.0f CPU seconds", arm.name, seed, seconds)
        return True

    def _train(self, arm: Arm, folder: Path, seed: int) -> dict[str, Any]:
        if "bundle" in arm.config:
            network, tokenizer, found = lessons.from_bundle(arm.config)
        else:
            network, tokenizer, mark = start(arm.config, self.training, self.cache, seed)
            found = {"vision": mark}
        material = lessons.build(arm.config, self.training)
        if arm.config["training"]["steps"]:
            network = fit(network, tokenizer, material, arm.config, folder, seed)
        found["weights"] = weights_hash(network)
        scored = lessons.score(arm, network, tokenizer, self.scorer(arm), self)
        return {**found, **scored, "log": curve(folder)}


def circumstances() -> dict[str, Any]:
    """When, at which commit, by which code, with which versions.

    `sources` is the sha256 of the code and configurations of this folder and of prune.py; `changed` says
    whether they, or the package, differed from the commit.
    """
    commit = _git("rev-parse", "--short", "HEAD")
    changed = _git("status", "--porcelain", "--", ":/monai_unimedvl/*.py", *(f":/{name}" for name in _code()))
    versions = {name: version(name) for name in ("torch", "monai", "transformers")}
    return {
        "date": time.strftime("%Y-%m-%d"), "commit": commit, "sources": sources_hash(),
        "changed": bool(changed) if commit else None, **versions,
    }  # fmt: skip


def sources_hash() -> str:
    """sha256 of the code and configurations that make results."""
    found = hashlib.sha256()
    for name, path in _code().items():
        found.update(f"{name} {path.stat().st_size}\n".encode())
        found.update(path.read_bytes())
    return found.hexdigest()


def _code() -> dict[str, Path]:
    """Name in the project -> file, of what makes results; what only reports them is no part of it."""
    scripts = [plan.HERE / f"{name}.py" for name in MAKERS]
    files = [*scripts, *sorted(plan.CONFIGS.glob("*.yaml")), plan.HERE.parent / "prune.py"]
    return {path.relative_to(plan.HERE.parents[2]).as_posix(): path for path in files}


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, cwd=plan.HERE).stdout.strip()


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--only", nargs="+", default=list(plan.LETTERS), choices=plan.LETTERS)
    parser.add_argument("--arms", nargs="+", default=None, help="only these arms of the questions")
    parser.add_argument("--seeds", type=int, default=None, help="how many, from 0 (default: as configured)")
    parser.add_argument("--cache", type=Path, default=default_root().parent / "science")
    parser.add_argument("--root", default=None, help="the atlas cache")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--report", action="store_true", help="write README.md and plots, train nothing")
    options = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s", force=True)
    logger.setLevel(logging.INFO)
    torch.set_num_threads(options.threads)
    if not options.report:
        runner = Runner(options.cache, plan.RESULTS, root=options.root)
        for letter in options.only:
            question = plan.question(letter)
            for seed in range(question.seeds if options.seeds is None else options.seeds):
                for arm in question.arms.values():
                    if options.arms is None or arm.name in options.arms:
                        runner.run(arm, seed)
    report.write_all(plan.HERE)
    joint.write_all(plan.HERE)


if __name__ == "__main__":
    main()
