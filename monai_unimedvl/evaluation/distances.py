# SPDX-License-Identifier: Apache-2.0
"""How far a set of drawn images is from a set of real ones, by the features that an encoder sees in them.

Frechet distance (Heusel et al. 2017), kernel distance (Binkowski et al. 2018, unbiased), precision and recall
(Kynkaanniemi et al. 2019), density and coverage (Naeem et al. 2020). None of these is a number without its
encoder, the number of images and an interval, so they come together; too few images are told.
  N real images   M drawn images   D features   R resamples
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from monai.utils import optional_import
from torch import Tensor

from monai_unimedvl.evaluation.intervals import RESAMPLES, Array, interval

NEIGHBOURS = 5  # of precision, recall, density and coverage, as CheXGenBench counts them
RELIABLE = 2048  # images below which a Frechet distance is dominated by its bias, whatever the encoder
MEASURES = ("Frechet", "kernel", "precision", "recall", "density", "coverage")
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """A distance or share with its bootstrap interval.

    Args:
        method: how the interval was found.
    """

    value: float
    low: float
    high: float
    method: str


@dataclass(frozen=True)
class SetScores:
    """What `compare_sets` found.

    Args:
        encoder: whose features were compared.
        real, drawn: numbers of images.
        scores: measure -> value and interval.
        warnings: what to know before a number is quoted.
    """

    encoder: str
    real: int
    drawn: int
    scores: Mapping[str, Measured]
    warnings: tuple[str, ...]


def compare_sets(
    drawn: Tensor, real: Tensor, *, encoder: str, seed: int = 0, resamples: int = RESAMPLES,
    neighbours: int = NEIGHBOURS, level: float = 0.95, loud: bool = True,
) -> SetScores:  # fmt: skip
    """All six measures of a set of drawn images against real ones.

    Args:
        drawn, real: features (M, D) and (N, D).
        encoder: its name, for the report.
        resamples: of the kernel distance and the shares; of the Frechet distance a tenth.
        loud: log the warnings too.

    Raises:
        ValueError: features of other shapes, or no numbers; fewer images than neighbours + 1.
    """
    _check(drawn, real, neighbours + 1)
    warnings = []
    fewest, width = min(len(drawn), len(real)), drawn.shape[1]
    if fewest < max(RELIABLE, width):
        warnings.append(
            f"{fewest} images and {width} features: a Frechet distance of fewer than {max(RELIABLE, width)}"
            " images is too high by an unknown amount; compare it only with one of as many images."
        )
    if fewest < 100:
        warnings.append(f"{fewest} images: intervals of fewer than 100 are themselves uncertain.")
    for line in warnings if loud else ():
        log.warning("%s: %s", encoder, line)
    kernel = kernel_distance(drawn, real)
    low, high = kernel_interval(drawn, real, seed=seed, resamples=resamples, level=level)
    scores = {
        "Frechet": frechet_interval(drawn, real, seed=seed, resamples=max(20, resamples // 10), level=level),
        "kernel": Measured(kernel, low, high, "percentile bootstrap of images, pairs of twins left out"),
    }
    for name, each in neighbour_scores(drawn, real, neighbours).items():
        low, high = interval(each.tolist(), seed=seed, resamples=resamples, level=level)
        scores[name] = Measured(
            float(each.mean()), low, high, "percentile bootstrap of the images that are counted"
        )
    return SetScores(encoder, len(real), len(drawn), scores, tuple(warnings))


def frechet_distance(drawn: Tensor, real: Tensor) -> float:
    """Frechet distance of the Gaussians with the means and covariances of (M, D) and (N, D), by MONAI.

    Raises:
        ValueError: features of other shapes, or no numbers; fewer than 2 images.
    """
    from monai.metrics.fid import get_fid_score

    _check(drawn, real, 2)
    if min(len(drawn), len(real)) <= drawn.shape[1]:  # covariances without full rank: no root to be had there
        return _frechet(drawn.double(), real.double())
    return max(0.0, float(get_fid_score(drawn.double(), real.double())))


def frechet_interval(
    drawn: Tensor, real: Tensor, *, seed: int = 0, resamples: int = 100, level: float = 0.95
) -> Measured:
    """The Frechet distance with its bootstrap interval, as wide as that of resampled sets, about the value.

    A resampled set has twins in it, so its distance is higher than that of the set it is from: the middle of
    the bootstrap is moved back onto the value. How much a distance of so few images is too high is not in the
    interval; a distance of as many other images is too high by about as much.
    """
    drawn, real = drawn.double(), real.double()
    value = frechet_distance(drawn, real)
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        rows = [torch.from_numpy(generator.integers(0, len(x), len(x))) for x in (drawn, real)]
        found.append(_frechet(drawn[rows[0]], real[rows[1]]))
    low, middle, high = np.quantile(found, [(1 - level) / 2, 0.5, (1 + level) / 2])
    return Measured(
        value, max(0.0, value - float(middle - low)), value + float(high - middle),
        "bootstrap of images about the value",
    )  # fmt: skip


def kernel_distance(drawn: Tensor, real: Tensor) -> float:
    """Unbiased squared maximum mean discrepancy of (M, D) and (N, D), kernel (x.y / D + 1)^3; may be below 0.

    Of all images at once; torchmetrics' arithmetic where both sets are equally large, for it knows no other.

    Raises:
        ValueError: features of other shapes, or no numbers; fewer than 2 images.
    """
    _check(drawn, real, 2)
    x, y = drawn.double(), real.double()
    kid, found = optional_import("torchmetrics.image.kid", name="poly_mmd")
    if found and len(x) == len(y):
        return float(kid(y, x))
    return float(_weighted(_kernels(x, y), np.ones((1, len(x))), np.ones((1, len(y))))[0])


def kernel_interval(
    drawn: Tensor, real: Tensor, *, seed: int = 0, resamples: int = RESAMPLES, level: float = 0.95
) -> tuple[float, float]:
    """Percentile bootstrap interval of the kernel distance over images of both sets.

    An image that is drawn twice is no pair with itself, as in the unbiased estimate.
    """
    x, y = drawn.double(), real.double()
    generator = np.random.default_rng(seed)
    counts = [
        generator.multinomial(len(one), np.full(len(one), 1 / len(one)), resamples).astype(np.float64)
        for one in (x, y)
    ]
    low, high = np.quantile(
        _weighted(_kernels(x, y), counts[0], counts[1]), [(1 - level) / 2, (1 + level) / 2]
    )
    return float(low), float(high)


def neighbour_scores(drawn: Tensor, real: Tensor, neighbours: int = NEIGHBOURS) -> dict[str, Tensor]:
    """Precision (M,), recall (N,), density (M,), coverage (N,), an entry an image; the means are the scores.

    Raises:
        ValueError: features of other shapes, or no numbers; fewer images than neighbours + 1.
    """
    _check(drawn, real, neighbours + 1)
    x, y = drawn.double(), real.double()
    between = torch.cdist(x, y)  # (M, N)
    reach_real, reach_drawn = (
        torch.cdist(one, one).kthvalue(neighbours + 1, dim=1).values  # the nearest is the image itself
        for one in (y, x)
    )
    inside = between <= reach_real[None]  # (M, N)
    return {
        "precision": inside.any(1).double(),
        "recall": (between <= reach_drawn[:, None]).any(0).double(),
        "density": inside.double().sum(1) / neighbours,
        "coverage": (between.amin(0) <= reach_real).double(),
    }


def _frechet(x: Tensor, y: Tensor) -> float:
    """As above, by |A B'|_* where A'A and B'B are the covariances: for any rank, and fast for few images."""
    a, b = ((one - one.mean(0)) / (len(one) - 1) ** 0.5 for one in (x, y))
    if len(a) > a.shape[1] or len(b) > b.shape[1]:  # the triangle of QR has the same covariance
        a, b = (torch.linalg.qr(one, mode="r").R if len(one) > one.shape[1] else one for one in (a, b))
    overlap = torch.linalg.svdvals(a @ b.T).sum()
    spread = a.square().sum() + b.square().sum() - 2 * overlap
    return max(0.0, float((x.mean(0) - y.mean(0)).square().sum() + spread))


def _kernels(x: Tensor, y: Tensor) -> tuple[Array, Array, Array]:
    """Within x (M, M), within y (N, N), between (M, N)"""
    xx, yy, xy = (((a @ b.T / x.shape[1] + 1) ** 3).numpy() for a, b in ((x, x), (y, y), (x, y)))
    return xx, yy, xy


def _weighted(kernels: tuple[Array, Array, Array], counts_x: Array, counts_y: Array) -> Array:
    """The estimate of each row of counts (R, M), (R, N), pairs of an image with itself left out: (R,)"""

    xx, yy, xy = kernels

    def inside(kernel: Array, counts: Array) -> Array:
        square = counts**2
        total = ((counts @ kernel) * counts).sum(1) - square @ np.diag(kernel)
        return np.asarray(total / (counts.sum(1) ** 2 - square.sum(1)))

    cross = ((counts_x @ xy) * counts_y).sum(1) / (counts_x.sum(1) * counts_y.sum(1))
    return np.asarray(inside(xx, counts_x) + inside(yy, counts_y) - 2 * cross)


def _check(drawn: Tensor, real: Tensor, fewest: int) -> None:
    if drawn.ndim != 2 or real.ndim != 2 or drawn.shape[1] != real.shape[1]:
        raise ValueError(
            f"Features of shapes {tuple(drawn.shape)} and {tuple(real.shape)} came, expected (M, D) and (N,"
            " D): encode both sets with the same encoder."
        )
    if min(len(drawn), len(real)) < fewest:
        raise ValueError(
            f"{len(drawn)} drawn and {len(real)} real images came, expected at least {fewest} of each:"
            " add some."
        )
    for name, one in (("drawn", drawn), ("real", real)):
        if not bool(torch.isfinite(one).all()):
            row = int((~torch.isfinite(one)).any(1).nonzero()[0, 0])
            raise ValueError(
                f"The features of {name} image {row} are no numbers: look at that image, or run the encoder"
                " in float32."
            )
