# SPDX-License-Identifier: Apache-2.0
"""One run: stages in their order, each an ordinary Lightning fit, in one process and one folder.

    OUT/1-foundation/   log, checkpoints, pictures, weights; `failed` where a loss was no number
    OUT/2-instruction/  ...

A stage begins with the weights that the one before ended with, and a new optimiser. A run that is resumed
skips the stages whose weights lie there and goes on from the newest checkpoint.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from itertools import chain
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning import loggers as logging_to
from pytorch_lightning.callbacks import LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.strategies import DDPStrategy

from monai_unimedvl import weights
from monai_unimedvl.data.mixture import Mixture, Pack
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.adapters import (
    adapted,
    adapters_in,
    adapters_of,
    add_adapters,
    merge_adapters,
    quantise,
    save_adapters,
    take_adapters,
)
from monai_unimedvl.training.callbacks import Averaging, Bar, Meter, Pictures, Scores
from monai_unimedvl.training.checkpoints import AtomicCheckpointIO, AtomicSharding, newest, whole
from monai_unimedvl.training.checks import check_terms
from monai_unimedvl.training.curriculum import Curriculum, Lessons, Stage
from monai_unimedvl.training.datamodule import UniMedVLDataModule, first_packs
from monai_unimedvl.training.meter import Names, task_of
from monai_unimedvl.training.module import UniMedVLModule
from monai_unimedvl.training.replay import Guard
from monai_unimedvl.training.settings import Settings
from monai_unimedvl.training.sheets import Case, Sheets
from monai_unimedvl.transforms.choosing import knows_only_squares
from monai_unimedvl.transforms.image import Rule
from monai_unimedvl.transforms.segments import ToSegments

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Material:
    """What a run learns from.

    Args:
        lessons: kind -> streams, to learn from. validation: the same of held-out samples, or nothing.
        names, held_out_names: origin of a sample -> what its losses are logged under.
        cases: what is drawn at each validation.
    """

    lessons: Lessons
    validation: Lessons = field(default_factory=dict)
    names: Names = task_of
    held_out_names: Names = task_of
    cases: Sequence[Case] = ()


def train(
    network: UniMedVL,
    tokenizer: Tokenizer,
    material: Material,
    settings: Settings,
    curriculum: Curriculum,
    *,
    stages: Sequence[int] | None = None,
    resume: str | Path | bool = False,
    score: Callable[[UniMedVL], Mapping[str, float]] | None = None,
) -> list[Path]:
    """Run stages one after the other on one network; returns the folder of each.

    Args:
        stages: numbers, from 1; None runs all.
        resume: True goes on in `settings.out`; a path goes on from that checkpoint in the first stage.
        score: network -> {name: value}, logged at each validation.

    Raises:
        ValueError: a setting that does not fit; a loss that is no number (`NotFinite`).
    """
    numbers = list(range(1, len(curriculum) + 1)) if stages is None else list(stages)
    named = [(n, Path(settings.out) / f"{n}-{curriculum.stage(n).name}") for n in numbers]
    made = ("checkpoints", "weights", "adapters")
    if not resume and (there := [path for _, path in named if any((path / one).is_dir() for one in made)]):
        raise ValueError(
            f"{there[0]} holds what a run has made, expected a new folder: add --resume to go on with it, or "
            "choose another --out."
        )
    types = {name: x.dtype for name, x in _numbers(network)}
    if settings.adapters and not adapted(network):
        if settings.quantise:
            quantise(network, settings.quantise)
        add_adapters(network, settings.adapters, rank=settings.rank)
    if adapted(network):  # Muon's other half would have nothing to learn
        curriculum = replace(curriculum, rates=replace(curriculum.rates, optimizer="adamw"))
    run = _Run(network, tokenizer, material, settings, curriculum, score, types)
    for number, folder in named:
        if resume is True and (folder / "weights" / "config.json").is_file():
            _take(network, folder / "weights")
            logger.info("stage %d is done: its weights are in %s", number, folder / "weights")
            continue
        given = resume if isinstance(resume, str | Path) and number == numbers[0] else None
        checkpoint = Path(given) if given else newest(folder / "checkpoints") if resume else None
        run.stage(number, folder, checkpoint)
    return [folder for _, folder in named]


HALF = (torch.bfloat16, torch.float16)  # rounds small steps, and the average of weights, away


@dataclass(frozen=True)
class _Run:
    """What the stages of a run share."""

    network: UniMedVL
    tokenizer: Tokenizer
    material: Material
    settings: Settings
    curriculum: Curriculum
    score: Callable[[UniMedVL], Mapping[str, float]] | None
    types: Mapping[str, torch.dtype]  # that the weights came in, and are written in

    def stage(self, number: int, folder: Path, checkpoint: Path | None) -> None:
        """Train one stage, from a checkpoint or from its beginning, and write its weights."""
        network, settings, stage = self.network, self.settings, self.curriculum.stage(number)
        if not settings.forward_precision.endswith("16-true") and not settings.quantise:
            _retype(network, {name: torch.float32 for name, x in _numbers(network) if x.dtype in HALF})
        seed = settings.seed + 1009 * (number - 1)
        packs = self._validation(number)
        datamodule = UniMedVLDataModule(
            self._mixture(self.curriculum, number, self.material.lessons, seed),
            num_workers=settings.workers, validation=packs, rejects=folder / "rejects.jsonl",
        )  # fmt: skip
        module = UniMedVLModule(
            network, self.tokenizer.marks, objective=stage.objective,
            rates=self.curriculum.stage_rates(number), frozen=stage.frozen, seed=seed,
            recompute=settings.recompute, compiled=settings.compiled,
            guard=Guard(folder / "failed", {"precision": settings.forward_precision, "stage": stage.name}),
        )  # fmt: skip
        watchers = self._watchers(folder, bool(packs))
        trainer = make_trainer(settings, stage, folder, watchers, validate=bool(packs))
        if trainer.is_global_zero:
            self.tokenizer.save(folder / "tokenizer")
        try:
            trainer.fit(module, datamodule=datamodule, ckpt_path=checkpoint, weights_only=True)
        except SystemExit as stopped:  # Lightning's answer to Ctrl-C, which it ignores from then on
            signal.signal(signal.SIGINT, signal.default_int_handler)
            raise KeyboardInterrupt from stopped
        if packs and stage.steps % settings.validate_every:
            trainer.validate(module, datamodule=datamodule, verbose=False)
        found = whole(network)
        if found is not None and not adapted(found):
            _retype(found, self.types)  # the next stage begins with what is written, killed in between or not
        if trainer.is_global_zero and found is not None:
            if adapted(found):  # alone, to the bit, and merged into weights that need no peft
                save_adapters(found, folder / "adapters", dtype=None)
                found = merge_adapters(deepcopy(found))
                _retype(found, self.types)
            weights.save(found, self.tokenizer, folder / "weights")
        trainer.strategy.barrier()

    def _validation(self, number: int) -> list[Pack]:
        """The packs that a stage is validated on, none where nothing is held out."""
        held_out = self.material.validation
        if not self.settings.validate_every or not any(held_out.values()):
            return []
        kept = _kinds_that_are_there(self.curriculum, number, held_out)
        return first_packs(self._mixture(kept, number, held_out, 0), self.settings.validation_packs)

    def _watchers(self, folder: Path, validates: bool) -> list[pl.Callback]:
        """What looks on; scores and pictures only where there is a validation."""
        material, settings = self.material, self.settings
        watchers: list[pl.Callback] = [Meter(material.names, material.held_out_names, settings.peak_flops)]
        if self.score is not None and validates:
            watchers.append(Scores(self.score))
        if material.cases and validates and settings.pictures:
            sheets = Sheets(
                self.tokenizer, material.cases, folder / "pictures", count=settings.pictures,
                square=knows_only_squares(self.network),
            )  # fmt: skip
            watchers.append(Pictures(sheets))
        return watchers

    def _mixture(self, curriculum: Curriculum, number: int, lessons: Lessons, seed: int) -> Mixture:
        segments = to_segments(self.network, self.tokenizer, curriculum.stage(number))
        lanes, ahead = self.settings.shared_lanes, self.settings.lookahead
        return curriculum.mixture(number, lessons, segments, seed=seed, lanes=lanes, lookahead=ahead)


def make_trainer(
    settings: Settings, stage: Stage, folder: Path, watchers: Sequence[pl.Callback] = (), *, validate: bool
) -> pl.Trainer:
    """The Lightning trainer of a stage; its checkpoints are whole or not there.

    Args:
        watchers: further callbacks; they come before the average of weights, so that they see it.
        validate: there are packs to validate on; also before the first update.
    """
    local, nodes = settings.ranks
    keep = ModelCheckpoint(
        folder / "checkpoints", "{step}", monitor="step", mode="max", save_top_k=settings.keep,
        every_n_train_steps=settings.checkpoint_every, enable_version_counter=False,
    )  # fmt: skip
    callbacks = [*watchers, LearningRateMonitor("step"), keep]
    if settings.progress:
        callbacks.append(Bar())
    if stage.ema:
        callbacks.insert(len(watchers), Averaging(decay=stage.ema))
    sharded = settings.strategy == "fsdp"
    strategy: Any = settings.strategy
    if sharded:
        strategy = AtomicSharding(local * nodes)
    elif local * nodes > 1:
        strategy = DDPStrategy()
    return pl.Trainer(
        accelerator=settings.device, devices=local, num_nodes=nodes, strategy=strategy,
        precision=settings.forward_precision,  # type: ignore[arg-type]
        max_steps=stage.steps, max_epochs=-1,
        accumulate_grad_batches=settings.packs_each, gradient_clip_val=settings.clip or None,
        log_every_n_steps=settings.log_every, logger=_loggers(settings, folder), callbacks=callbacks,
        plugins=None if sharded else [AtomicCheckpointIO()], default_root_dir=folder,
        val_check_interval=settings.validate_every * settings.packs_each if validate else None,
        check_val_every_n_epoch=None if validate else 1, limit_val_batches=1.0 if validate else 0,
        num_sanity_val_steps=-1 if validate else 0, enable_progress_bar=settings.progress,
        enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip


def to_segments(network: UniMedVL, tokenizer: Tokenizer, stage: Stage) -> ToSegments:
    """Dialogues to segments at the sizes of a stage, or those that the network was made for."""
    rules: dict[str, Any] = {}
    for name, sides in (("view", stage.view), ("canvas", stage.canvas)):
        longest, shortest, stride = network.grids.get(name, network.grids["canvas"])
        rules[name] = Rule(*(longest, shortest) if sides is None else sides[::-1], stride)
    patch = None if network.vision is None else network.vision.patch_size
    return ToSegments(
        tokenizer, **rules, view_patch=patch, canvas_patch=network.canvas_stride,
        keep_drawn=True,  # what comes after a drawing sees it, as in inference
        square=knows_only_squares(network),
    )  # fmt: skip


def _kinds_that_are_there(curriculum: Curriculum, number: int, lessons: Lessons) -> Curriculum:
    """The stage for validation: without kinds of which nothing is held out, and without annealing."""
    stage = curriculum.stage(number)
    kept = {kind: weight for kind, weight in stage.weights.items() if lessons.get(kind)}
    stages = list(curriculum.stages)
    stages[number - 1] = replace(stage, weights=kept, anneal=0)
    return replace(curriculum, stages=tuple(stages))


def _loggers(settings: Settings, folder: Path) -> list[Any]:
    """Loggers into `folder`, those that the user has."""
    made: list[Any] = []
    for name in settings.loggers:
        try:
            if name == "csv":
                made.append(logging_to.CSVLogger(folder, "log", "csv"))
            elif name == "tensorboard":
                made.append(logging_to.TensorBoardLogger(folder, "log", "tensorboard"))
            elif name == "mlflow":
                there = f"file:{folder / 'log' / 'mlflow'}"
                made.append(logging_to.MLFlowLogger(folder.parent.name, tracking_uri=there))
            else:
                project = folder.parent.name
                made.append(logging_to.WandbLogger(folder.name, save_dir=folder / "log", project=project))
        except ModuleNotFoundError as error:
            logger.warning("%s is not logged to: %s", name, str(error).splitlines()[0])
    return made


def _retype(network: UniMedVL, types: Mapping[str, torch.dtype]) -> None:
    """Bring some of a network's numbers, by their names, to other types."""
    for name, x in _numbers(network):
        x.data = x.data.to(types.get(name, x.dtype))


def _numbers(network: UniMedVL) -> Iterator[tuple[str, torch.Tensor]]:
    return chain(network.named_parameters(), network.named_buffers())


def _take(network: UniMedVL, folder: Path) -> None:
    """Put saved weights into a network, or into its adapters."""
    check_terms({"adapters": adapters_in(folder.parent / "adapters")}, {"adapters": adapters_of(network)})
    if adapted(network):
        take_adapters(network, folder.parent / "adapters")
        return
    found, _ = weights.load(folder)
    network.load_state_dict(found.state_dict())
