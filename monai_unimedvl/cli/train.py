# SPDX-License-Identifier: Apache-2.0
"""`unimedvl train` and `unimedvl consolidate`: fine-tune, run the curriculum, look at a failed pack."""

from __future__ import annotations

import logging
import os
import sys
import warnings
from argparse import Namespace
from contextlib import redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from monai_unimedvl.cli.command import Result

MORE = {  # name -> kind of its value
    "model": str, "stage": str, "steps": int, "lr": float, "max_tokens": int, "curriculum": Any, "tasks": Any,
    "atlas": str | None, "permissive_only": bool, "score": int, "data": Any, "check": str,
}  # fmt: skip
LARGE = 1_000_000_000  # parameters: from here on the curriculum is the paper's own


def train(options: Namespace) -> Result:
    """Fine-tune a model on the atlas corpus or on shards of one's own, or run stages of the curriculum."""
    if options.replay:
        return _replay(options)
    from monai_unimedvl import bundle
    from monai_unimedvl.training.lessons import atlas_material
    from monai_unimedvl.training.run import train as run

    _hush()
    settings, more = _settings(options)
    network, tokenizer = bundle.load(more.get("model", bundle.DEFAULT))
    root, free = more.get("atlas"), bool(more.get("permissive_only", False))
    tasks = more.get("tasks")
    tasks = [tasks] if isinstance(tasks, str) else tasks
    if folders := more.get("data"):
        material = _corpus(folders, tasks, more)
    else:
        material = atlas_material(
            root, tasks=tasks, permissive_only=free, seed=settings.seed, progress=settings.progress
        )
    curriculum, stages = _curriculum(more, network, material)
    score = None
    if settings.validate_every and (limit := more.get("score", 0 if more.get("data") else 4)):
        from monai_unimedvl.evaluation.score import AtlasScore

        scored = None if tasks is None else [task for task in tasks if task != "text"]
        score = AtlasScore(tokenizer, scored, limit=limit, root=root, permissive_only=free)
    done = {path.parents[1] for path in Path(settings.out).glob("*/weights/config.json")}
    with redirect_stdout(sys.stderr):  # the bar of Lightning
        folders = run(
            network.train(), tokenizer, material, settings, curriculum, stages=stages,
            resume=options.resume or False, score=score,
        )  # fmt: skip
    if int(os.environ.get("RANK", 0)):
        return [], {}  # the first of several processes speaks
    lines = [
        f"{folder.name}: weights in {folder / 'weights'}, "
        + ("as they were: this stage was done" if folder in done else "log and pictures beside")
        for folder in folders
    ]
    lines.append(f"Look at the course: tensorboard --logdir {settings.out}")
    return lines, {"outputs": [str(folder / "weights") for folder in folders]}


def consolidate(options: Namespace) -> Result:
    """Turn a checkpoint, one file or sharded, into a folder of weights."""
    from monai_unimedvl import bundle, weights
    from monai_unimedvl.tokenizer import Tokenizer
    from monai_unimedvl.training.checkpoints import read_network

    checkpoint = Path(options.checkpoint)
    network = read_network(checkpoint)
    beside = checkpoint.resolve().parent.parent / "tokenizer"
    folder = bundle.models(options.model) if options.model else beside
    tokenizer = Tokenizer.load(folder) if (folder / "tokenizer.json").is_file() else None
    out = Path(options.out or checkpoint.with_suffix(""))
    weights.save(network, tokenizer, out)
    lines = [f"wrote {out}: config.json and model*.safetensors"]
    if tokenizer is None:
        lines.append("No tokenizer was found: add --model with the bundle that the run began with.")
    return lines, {"outputs": [str(out)]}


def _settings(options: Namespace) -> tuple[Any, dict[str, Any]]:
    """The settings of the file, then of the command line, and what else was said."""
    from monai_unimedvl.training.settings import Settings, read_config

    settings, more = read_config(options.config, MORE) if options.config else (Settings(), {})
    if more.get("score", 0) < 0:
        raise ValueError(f"score is {more['score']}, expected items of each task, or 0 for none: raise it.")
    given: dict[str, Any] = {"progress": settings.progress and not options.quiet}
    for key, value in (("out", options.out), ("seed", options.seed), ("device", options.device)):
        if value is not None:
            given[key] = value
    settings = replace(settings, **given)
    said = {
        "model": options.model, "stage": options.stage, "steps": options.max_steps, "lr": options.lr,
        "tasks": options.tasks, "data": options.data, "atlas": options.atlas,
        "permissive_only": options.permissive_only or None,
    }  # fmt: skip
    more |= {key: value for key, value in said.items() if value is not None}
    return settings, more


def _corpus(folders: Any, tasks: Any, more: dict[str, Any]) -> Any:
    """The shards to learn from, checked."""
    from monai_unimedvl.training.material import corpus_material

    named = [folders] if isinstance(folders, str) else list(folders)
    return corpus_material(*named, tasks=tasks, check=more.get("check", "sha256"))


def _curriculum(more: dict[str, Any], network: Any, material: Any) -> tuple[Any, list[int] | None]:
    """The stages, and the numbers of those to run; None for all."""
    from collections.abc import Mapping

    from monai_unimedvl.training.curriculum import Curriculum
    from monai_unimedvl.training.lessons import fine_tuning

    stage, said = more.get("stage", ""), more.get("curriculum")
    sizes = {key: more[key] for key in ("lr", "max_tokens") if key in more}
    steps = more.get("steps", 300)
    if stage not in ("", "all") and not stage.isdecimal():
        raise ValueError(f"stage is {stage!r}, expected the number of one, or all: write that.")
    if isinstance(said, Mapping):
        curriculum = Curriculum.from_config(said)
        return curriculum, None if stage in ("", "all") else [int(stage)]
    if said not in (None, "paper", "scaled"):
        raise ValueError(f"curriculum is {said!r}, expected 'paper', 'scaled' or stages: write one of these.")
    if not stage and said is None:
        return fine_tuning(material.lessons, steps=steps, **{"lr": 1e-3, **sizes}), None
    large = sum(p.numel() for p in network.parameters()) > LARGE
    paper = said == "paper" or (said is None and large)
    curriculum = Curriculum() if paper else Curriculum.scaled(steps, **sizes)
    return curriculum, None if stage in ("", "all") else [int(stage)]


def _replay(options: Namespace) -> Result:
    """Run the step of a saved pack again and say where its numbers break."""
    from monai_unimedvl import bundle, weights
    from monai_unimedvl.training.replay import load_pack, replay

    batch, facts = load_pack(options.replay)
    path = Path(options.replay)
    beside = (path if path.is_dir() else path.parent) / "weights"
    if options.model is None and (beside / "config.json").is_file():
        network, _ = weights.load(beside)
    else:
        network, _ = bundle.load(options.model or bundle.DEFAULT)
    found = replay(network, batch, facts)
    losses = found.losses
    text, flow, loss = (float(x.detach()) for x in losses[:3])
    lines = [f"pack {facts['number']}: text {text:.4g}, flow {flow:.4g}, loss {loss:.4g}"]
    lines[0] += f" ({facts['what']} was {facts['value']})"
    for origin, row in zip(batch.origins, losses.by_sample.tolist(), strict=True):
        lines.append(f"  {origin}: text {row[0] / max(row[1], 1):.4g}, flow {row[2] / max(row[3], 1):.4g}")
    if found.first:
        lines.append(f"The first output that is no number is that of {found.first}.")
    if found.gradients:
        first = found.gradients[0]
        lines.append(f"{len(found.gradients)} gradients are no numbers, such as that of {first}.")
    if not found.first and not found.gradients:
        lines.append("Every number is finite here.")
    values = {
        "text": text, "flow": flow, "loss": loss,
        "origins": batch.origins, "first": found.first, "gradients": list(found.gradients),
    }  # fmt: skip
    return lines, values


def _hush() -> None:
    """Lightning's own notices, which tell a user of this command nothing."""
    for name in ("pytorch_lightning", "lightning_fabric", "pytorch_lightning.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", module="pytorch_lightning")
    warnings.filterwarnings("ignore", module="lightning_fabric")
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(message)s")
