# SPDX-License-Identifier: Apache-2.0
"""How an arm is trained: the package's own stages and Lightning run, from one pretrained vision encoder.

The start (tokenizer, codec, vision encoder) is made once and kept in the cache; a seed draws the rest of the
weights, the order of the samples, times and noise. Arms of one seed begin alike. Checkpoints lie in the
cache, so that a killed arm goes on.
"""

from __future__ import annotations

import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from monai_unimedvl import weights
from monai_unimedvl.atomic import write
from monai_unimedvl.data.atlas import AtlasDataset
from monai_unimedvl.data.mixture import Dropout, Stream
from monai_unimedvl.evaluation.asking import weights_hash
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import UniMedVL, nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.training.curriculum import Curriculum, Stage
from monai_unimedvl.training.objective import Objective
from monai_unimedvl.training.optimizer import Rates
from monai_unimedvl.training.presets import corpus, training_pictures
from monai_unimedvl.training.run import Material, train
from monai_unimedvl.training.settings import Settings
from monai_unimedvl.training.vision import pretrain_vision, seeded

Lessons = dict[str, list[Stream]]


@dataclass(frozen=True)
class WeighedStage(Stage):
    """A stage whose objective weighs edits by how much they change, as the nano's own training does."""

    relative: float = 0.0

    @property
    def objective(self) -> Objective:
        """The losses of this stage."""
        return Objective(self.text_weight, self.flow_weight, relative=self.relative)


def start(
    config: dict[str, Any], dataset: AtlasDataset, cache: Path, seed: int
) -> tuple[UniMedVL, Tokenizer, str]:
    """A network drawn from `seed` around the shared vision encoder; its tokenizer; the encoder's sha256.

    The encoder is pretrained at the first call and read from the cache afterwards.
    """
    shape, vision = config["network"], config["vision"]
    mark = hashlib.sha256(json.dumps([shape, vision], sort_keys=True).encode()).hexdigest()[:12]
    folder = cache / f"start-{mark}"
    if not (folder / "config.json").is_file():
        tokenizer = Tokenizer.train(corpus(dataset), shape["vocabulary"])
        pictures = training_pictures(dataset)
        with seeded(vision["seed"]):
            codec = PatchCodec.fit(pictures, patch=8, channels=shape["channels"])
            network = _nano(codec, tokenizer, shape)
        latents = codec.encode_stage_2_inputs(pictures)  # (N, C, h, w)
        network.latent_variance.copy_(latents.var(dim=(0, 2, 3)))  # type: ignore[operator]
        if vision["steps"]:
            pretrain_vision(network, dataset, progress=False, **vision)
        weights.save(network, tokenizer, folder)
    shared, tokenizer = weights.load(folder)
    assert tokenizer is not None
    with seeded(seed):
        network = _nano(shared.autoencoder, tokenizer, shape)
    network.vision.load_state_dict(shared.vision.state_dict())  # type: ignore[union-attr]
    network.latent_variance.copy_(shared.latent_variance)  # type: ignore[operator]
    return network.train(), tokenizer, weights_hash(network.vision)  # type: ignore[arg-type]


def fit(
    network: UniMedVL, tokenizer: Tokenizer, lessons: Lessons, config: dict[str, Any], folder: Path, seed: int
) -> UniMedVL:
    """Train an arm, or what is left of it; the network that it ends with, in eval mode."""
    how = config["training"]
    stages = tuple(stages_of(config))
    rates = Rates(
        optimizer=how["optimizer"], lr=how["lr"], matrix_lr=how["matrix_lr"], schedule="constant",
        warmup=how["warmup"],
    )  # fmt: skip
    settings = Settings(
        out=str(folder), seed=seed, checkpoint_every=how["checkpoint_every"], keep=1, validate_every=0,
        pictures=0, loggers=("csv",), peak_flops=0.0, progress=False, log_every=20, lanes=1,
        precision=how.get("precision", "auto"), adapters=how.get("adapters"), rank=how.get("rank", 4),
    )  # fmt: skip
    folders = train(network, tokenizer, Material(lessons), settings, Curriculum(stages, rates), resume=True)
    found, _ = weights.load(folders[-1] / "weights")
    return found.eval()


def stages_of(config: dict[str, Any]) -> Iterator[WeighedStage]:
    """The stages of an arm, their shares of the steps rounded so that they add up."""
    how, rows = config["training"], config["stages"]
    total, done, before = sum(row["share"] for row in rows), 0, 0
    for row in rows:
        done += row["share"]
        until = round(how["steps"] * done / total)
        yield WeighedStage(
            row["name"], steps=until - before, lr=how["lr"] * row["lr"], max_tokens=how["budget"],
            weights=row["weights"], frozen=tuple(row.get("frozen", ())), dropout=Dropout(**how["dropout"]),
            ema=how["ema"], text_weight=how["text_weight"], relative=how["relative"],
        )  # fmt: skip
        before = until


def curve(folder: Path) -> list[dict[str, float]]:
    """The losses of a run as they were logged, all stages one after the other."""
    rows: list[dict[str, float]] = []
    for path in sorted(folder.glob("*/log/**/metrics.csv")):
        head, *lines = path.read_text("utf8").splitlines()
        names = head.split(",")
        before = rows[-1]["step"] if path.parts and rows and _new_stage(path, folder) else 0.0
        for line in lines:
            found = {k: float(x) for k, x in zip(names, line.split(","), strict=True) if x}
            if "text" in found:
                rows.append(
                    {"step": before + found["step"] + 1, "text": found["text"], "flow": found["flow"]}
                )
    return [{key: round(value, 4) for key, value in row.items()} for row in rows]


def _new_stage(path: Path, folder: Path) -> bool:
    return path.relative_to(folder).parts[0] != sorted(p.name for p in folder.iterdir() if p.is_dir())[0]


def _nano(codec: torch.nn.Module, tokenizer: Tokenizer, shape: dict[str, Any]) -> UniMedVL:
    return nano(  # without a U-Net over the source, which came after the first arms
        codec, vocab_size=len(tokenizer), hidden_size=shape["hidden_size"], num_layers=shape["num_layers"],
        details=0,
    )  # fmt: skip


@contextmanager
def metered(file: Path) -> Iterator[Callable[[], float]]:
    """CPU seconds of this process from here on and of the killed ones before, kept in a file as they run."""
    before = float(json.loads(file.read_text("utf8"))) if file.is_file() else 0.0
    began, over = time.process_time(), threading.Event()

    def spent() -> float:
        return before + time.process_time() - began

    def keep() -> None:
        while not over.wait(5.0):
            write(file, json.dumps(spent()).encode())

    file.parent.mkdir(parents=True, exist_ok=True)
    keeper = threading.Thread(target=keep, daemon=True)
    keeper.start()
    try:
        yield spent
    finally:
        over.set()
        keeper.join()
        write(file, json.dumps(spent()).encode())
