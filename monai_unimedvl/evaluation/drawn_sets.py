# SPDX-License-Identifier: Apache-2.0
"""What is said of all drawings from words together: distances to real images, and the privacy audit.

The encoder is the small judge that was trained here on real training slices, for it needs no download; a
Frechet distance by it is none by Inception. Beside each figure stands that of real training images.
  N drawn   M training   K held-out real images
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import torch
from torch import Tensor

from monai_unimedvl.evaluation.audit import Audit, audit
from monai_unimedvl.evaluation.baselines import Beside
from monai_unimedvl.evaluation.classifier import Judge
from monai_unimedvl.evaluation.distances import NEIGHBOURS, SetScores, compare_sets
from monai_unimedvl.evaluation.encoders import Encoder
from monai_unimedvl.evaluation.tables import ALL, Row

NAMES = {"Frechet": "Frechet distance", "kernel": "MMD"}
REAL = "random training images"


def measure(
    images: Mapping[str, Tensor], beside: Mapping[tuple[str, str], Beside], training: Tensor, judge: Judge,
    about: dict[str, Any],
) -> list[Row]:  # fmt: skip
    """The rows of all drawings from words; their audits and warnings go into `about`.

    Args:
        images: "section/task/setting" -> (N, 3, H, W) uint8.
        beside: (section, task) -> the true images, and the sets that are drawn without a model.
        training: (M, 3, H, W) in [0, 1]. about: of the report, with its seed.
    """
    rows: list[Row] = []
    about["audits"], about["warnings"] = {}, []
    for name, drawn in images.items():
        section, task, setting = name.split("/")
        if task != "text-to-image":
            continue
        others = beside[section, task]
        sets, encoder = (drawn.float() / 255, others.truth, training), encoder_of(judge)
        found, told = set_rows(
            task, section, setting, *sets, encoder, seed=about["seed"], guesses=others.drawn
        )
        rows += found
        about["warnings"] += told
        if found:
            about["audits"][section] = plain(audit_drawings(*sets, encoder, seed=about["seed"]))
    return rows


def encoder_of(judge: Judge) -> Encoder:
    """The judge as an encoder of 64 features."""
    return Encoder("judge of contrast and plane", judge.features, batch=256)


def set_rows(
    task: str, section: str, setting: str, drawn: Tensor, real: Tensor, training: Tensor, encoder: Encoder, *,
    seed: int = 0, guesses: Mapping[str, Tensor] | None = None,
) -> tuple[list[Row], list[str]]:  # fmt: skip
    """One row a measure, beside as many training images; and the warnings. Too few images give none.

    Args:
        drawn, real, training: (N, 3, H, W), (K, 3, H, W), (M, 3, H, W) in [0, 1].
        guesses: name -> (N, 3, H, W), sets to stand beside as well.
    """
    fewest = min(len(drawn), len(real), len(training))
    if fewest <= NEIGHBOURS:
        return [], [f"{task}, {section}: {fewest} images are too few for a distance between sets."]
    order = torch.randperm(len(training), generator=torch.Generator().manual_seed(seed))
    wanted = encoder(real)
    quiet: dict[str, Any] = {"encoder": encoder.name, "seed": seed, "loud": False}  # `about` has them
    ours = compare_sets(encoder(drawn), wanted, **quiet)
    theirs = {
        name: compare_sets(encoder(images), wanted, resamples=20, **quiet)
        for name, images in {REAL: training[order[: len(drawn)]], **(guesses or {})}.items()
    }
    rows = [
        Row(
            task, section, ALL, setting, NAMES.get(name, name), len(drawn), one.value, one.low, one.high,
            {guess: other.scores[name].value for guess, other in theirs.items()},
        )
        for name, one in ours.scores.items()
    ]  # fmt: skip
    return rows, _named(ours, task, section)


def audit_drawings(
    drawn: Tensor, real: Tensor, training: Tensor, encoder: Encoder, *, seed: int = 0
) -> Audit:
    """The privacy audit of drawings (N, 3, H, W) against training and held-out real images."""
    return audit(encoder(drawn), encoder(training), encoder(real), encoder=encoder.name, seed=seed)


def plain(found: Audit) -> dict[str, Any]:
    """An audit without its long list, JSON-able."""
    said: Mapping[str, Any] = asdict(found)
    return {name: value for name, value in said.items() if name != "nearest"}


def _named(found: SetScores, task: str, section: str) -> list[str]:
    return [f"{task}, {section}, by {found.encoder}: {line}" for line in found.warnings]
