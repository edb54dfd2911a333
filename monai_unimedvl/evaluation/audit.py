# SPDX-License-Identifier: Apache-2.0
"""Whether drawn images give away the patients of the training: copies, neighbours, re-identification.

Every figure stands beside the same figure of real images that were held out: near is only what is nearer than
two patients are by chance. A pass is no proof of privacy; it says that this encoder finds nothing.
  N drawn   M training   K held-out images   D features
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from monai_unimedvl.evaluation.intervals import interval, median_interval

FEWEST = 50  # drawn images, below which the gate does not decide
FALSE_ALARMS = 0.01  # share of held-out real images that the copy distance takes for copies
Verdict = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True)
class Share:
    """A share with its bootstrap interval, and the same of real held-out images or by chance."""

    value: float
    low: float
    high: float
    reference: float | None


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Args:
        encoder: whose features were compared.
        drawn, training, held_out: numbers of images.
        copy_distance: a drawn image nearer than this to a training image counts as its copy.
        copies: share of drawn images that are copies. reference: of held-out real images.
        ratio: median over images of nearest to second-nearest distance, the second of another patient if
            patients are known; near 0 is one patient singled out. reference: of held-out real images.
        memorised: share of drawn images nearer to a training image than to as many held-out ones. reference:
            0.5, that of a model that has learned the law and not the images.
        reidentified: share of drawn images whose nearest training image is of the patient that was asked
            for; None where patients are not known. reference: by chance.
        patients: patient -> share of the images drawn for them that were nearest to them.
        verdict, why: of the gate.
    """

    encoder: str
    drawn: int
    training: int
    held_out: int
    copy_distance: float
    copies: Share
    ratio: Share
    memorised: Share
    reidentified: Share | None
    patients: Mapping[str, float]
    verdict: Verdict
    why: tuple[str, ...]
    nearest: tuple[tuple[int, float], ...] = field(default=(), repr=False)  # of each drawn: which, how far

    def __str__(self) -> str:
        return f"{self.verdict}: {'; '.join(self.why)}"


def audit(
    drawn: Tensor, training: Tensor, held_out: Tensor, *, encoder: str,
    asked: Sequence[Hashable] | None = None, patients: Sequence[Hashable] | None = None, seed: int = 0,
    most_copies: float = 0.05, most_memorised: float = 0.65, reidentification_over_chance: float = 2.0,
) -> Audit:  # fmt: skip
    """Compare drawn images with training and held-out ones, and decide whether they may be shared.

    The gate fails if the whole interval of a share lies above its limit, so chance alone does not fail it; it
    does not decide on fewer than `FEWEST` images.

    Args:
        drawn, training, held_out: features (N, D), (M, D), (K, D) of one encoder.
        asked: patient whose report or image each drawn image was made from. patients: of the training images.
        most_copies: limit of the share of copies. most_memorised: of the share nearer to training images.
        reidentification_over_chance: limit of the re-identification rate, as a multiple of chance.

    Raises:
        ValueError: features of other shapes, or too few; not one patient an image.
    """
    _check(drawn, training, held_out, asked, patients)
    generator = torch.Generator().manual_seed(seed)
    near, second, which = _nearest(drawn, training, patients)
    real_near, real_second, _ = _nearest(held_out, training, patients)
    limit = float(real_near.quantile(FALSE_ALARMS))
    copies = _share((near <= limit).double(), float((real_near <= limit).double().mean()), seed)
    ratios = near / second.clamp_min(1e-12)
    low, high = median_interval(ratios.tolist(), seed=seed)
    real = real_near / real_second.clamp_min(1e-12)
    ratio = Share(float(ratios.quantile(0.5)), low, high, float(real.quantile(0.5)))
    count = min(len(training), len(held_out))
    rows = torch.randperm(len(training), generator=generator)[:count]
    others = torch.randperm(len(held_out), generator=generator)[:count]
    train_near = torch.cdist(drawn.double(), training[rows].double()).amin(1)
    held_near = torch.cdist(drawn.double(), held_out[others].double()).amin(1)
    memorised = _share((train_near < held_near).double() + (train_near == held_near).double() / 2, 0.5, seed)
    found, by_patient = None, {}
    if asked is not None and patients is not None:
        hits = torch.tensor([float(patients[int(n)] == who) for n, who in zip(which, asked, strict=True)])
        chance = sum(list(patients).count(who) / len(patients) for who in asked) / len(asked)
        found = _share(hits.double(), chance, seed, asked)
        by_patient = {
            str(who): float(hits[[one == who for one in asked]].mean()) for who in dict.fromkeys(asked)
        }
    why = []
    if copies.low > most_copies:
        why.append(f"{copies.value:.1%} copy a training image, {most_copies:.0%} allowed")
    if memorised.low > most_memorised:
        why.append(
            f"{memorised.value:.1%} are nearer to training images than to held-out ones, "
            f"{most_memorised:.0%} allowed"
        )
    if found is not None and found.reference and found.low > reidentification_over_chance * found.reference:
        why.append(
            f"{found.value:.1%} lead back to the patient they were drawn for, "
            f"{reidentification_over_chance * found.reference:.1%} allowed"
        )
    verdict: Verdict = "failed" if why else "passed"
    if len(drawn) < FEWEST and not why:
        verdict = "undecided"
        why.append(f"{len(drawn)} drawn images are too few, {FEWEST} are asked for")
    return Audit(
        encoder, len(drawn), len(training), len(held_out), limit, copies, ratio, memorised, found,
        by_patient, verdict, tuple(why or [f"nothing above its limit by {encoder}"]),
        tuple((int(n), float(d)) for n, d in zip(which, near, strict=True)),
    )  # fmt: skip


def _nearest(
    images: Tensor, bank: Tensor, patients: Sequence[Hashable] | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Distance to the nearest of the bank, to the second nearest (another patient), and which is nearest."""
    apart = torch.cdist(images.double(), bank.double())  # (N, M)
    near, which = apart.min(1)
    if patients is None:
        return near, apart.kthvalue(2, dim=1).values, which
    number = {who: n for n, who in enumerate(dict.fromkeys(patients))}
    owner = torch.tensor([number[who] for who in patients])
    same = owner[which][:, None] == owner[None]
    return near, apart.masked_fill(same, float("inf")).amin(1), which


def _share(
    hits: Tensor, reference: float | None, seed: int, clusters: Sequence[Hashable] | None = None
) -> Share:
    low, high = interval(hits.tolist(), clusters=clusters, seed=seed)
    return Share(float(hits.mean()), low, high, reference)


def _check(
    drawn: Tensor, training: Tensor, held_out: Tensor, asked: Sequence[Hashable] | None,
    patients: Sequence[Hashable] | None,
) -> None:  # fmt: skip
    for name, one in (("drawn", drawn), ("training", training), ("held-out", held_out)):
        if one.ndim != 2 or one.shape[1] != training.shape[1] or len(one) < 2:
            raise ValueError(
                f"The {name} images have features of shape {tuple(one.shape)}, expected some rows of "
                f"{training.shape[-1]}: encode all with the same encoder."
            )
    if (asked is None) != (patients is None):
        raise ValueError("Patients came for one of `asked` and `patients`, expected both: name the other.")
    for names, images, what in ((asked, drawn, "drawn"), (patients, training, "training")):
        if names is not None and len(names) != len(images):
            raise ValueError(f"{len(images)} {what} images came with {len(names)} patients: give one each.")
    if patients is not None and len(set(patients)) < 2:
        raise ValueError("All training images are of one patient: leave `asked` and `patients` out.")
