# SPDX-License-Identifier: Apache-2.0
"""Scores for the drawings that a prediction file names: files `drawn` beside files `truth_image`.

    scored = score_pictures(read_predictions("edits.parquet"), "folder/of/the/files")

At the size of the truth, whatever size was drawn; `upstream=True` does what the public code of the paper's
group does instead. A file that is missing, no picture, or holds what is no number stops the run and is named.
  H, W pixels
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from monai_unimedvl.evaluation.distances import SetScores, compare_sets
from monai_unimedvl.evaluation.encoders import Encoder, ImageText, image_text_scores
from monai_unimedvl.evaluation.image import (
    at_size_of,
    dice,
    foreground,
    hausdorff,
    labels_from_colours,
    psnr,
    ssim,
    upstream_scores,
)
from monai_unimedvl.evaluation.predictions import Predictions
from monai_unimedvl.evaluation.report import summarise
from monai_unimedvl.evaluation.tables import Row

Legend = Mapping[str, tuple[int, int, int]]
STRETCHED = 2.0  # sides of a drawing are multiples of a patch, and may be out of proportion by less than this
FITS = "image-text cosine"
ENDINGS = (".png", ".jpg", ".jpeg", ".tif", ".tiff", ".bmp", ".npy")


def score_pictures(
    predictions: Predictions, root: str | Path, *, upstream: bool = False, inside: bool = False,
    legend: Legend | None = None,
) -> Predictions:  # fmt: skip
    """The same rows with scores of their drawings: PSNR and SSIM, or Dice and HD95 of decoded masks.

    Args:
        root: folder that the names of the files start from.
        upstream: PSNR and SSIM of 8-bit images, the truth resized to the drawing.
        inside: PSNR and SSIM of the foreground of the truth as well.
        legend: name -> colour (red, green, blue) of masks drawn as pictures.

    Raises:
        ValueError: no row names a drawing; a file that is missing, unreadable or holds no numbers, or a
            drawing of another form than its truth, with its row; an upstream score of masks.
    """
    if upstream and (legend or inside):
        raise ValueError("The upstream scores know no masks and no foreground: leave one of both out.")
    if not any(row.drawn for row in predictions.rows):
        raise ValueError(
            f"{predictions.source} names no drawing, expected files in the column drawn: add it, or score "
            "its answers by a protocol."
        )
    rows, resized = [], 0
    for number, row in enumerate(predictions.rows, 1):
        where = f"{predictions.source} row {number} (id {row.id})"
        if not row.drawn or not row.truth_image:
            lost = "drawn" if not row.drawn else "truth_image"
            raise ValueError(f"{where} has nothing in {lost}, expected a file as the others have: name it.")
        drawn, truth = (
            read_picture(Path(root) / name, f"{where}, {column}")
            for column, name in (("drawn", row.drawn), ("truth_image", row.truth_image))
        )
        resized += drawn.shape != truth.shape
        if stretch(drawn, truth) > STRETCHED:
            raise ValueError(
                f"{where} has a drawing of {tuple(drawn.shape[1:])} and a truth of {tuple(truth.shape[1:])} "
                "pixels, expected one form: turn or cut one of both, for neither is stretched."
            )
        try:
            found = dict(_scores(drawn, truth, upstream, inside, legend))
        except ValueError as error:
            raise ValueError(f"{where}: {error}") from error
        scores = {name: None if math.isnan(value) else value for name, value in found.items()}
        rows.append(replace(row, scores={**row.scores, **scores}))
    how = "truth at the size of the drawing, 8 bits" if upstream else "at the size of the truth, range 1"
    about = predictions.about | {"pictures": how, "resized": resized}
    return Predictions(rows, about, predictions.source)


def stretch(image: Tensor, truth: Tensor) -> float:
    """By what factor sides (3, h, w) and (3, H, W) are out of proportion; 1 where both have one form."""
    (high, wide), (tall, broad) = image.shape[1:], truth.shape[1:]
    factor = (high * broad) / (wide * tall)
    return float(max(factor, 1 / factor))


def read_picture(path: Path, where: str) -> Tensor:
    """(3, H, W) in [0, 1] of a picture of 8 or 16 bits, or of an array .npy in [0, 1].

    Args:
        where: file, row and column, for messages.

    Raises:
        ValueError: there is no such picture, or pixels are no numbers or outside of [0, 1].
    """
    if not path.is_file():
        raise ValueError(f"{where}: {path.name} is not there: copy it, or name the folder of the files.")
    if path.suffix.lower() not in ENDINGS:
        raise ValueError(f"{where}: {path.name} is no picture, expected {', '.join(ENDINGS)}: convert it.")
    try:
        values = np.load(path, allow_pickle=False) if path.suffix == ".npy" else np.asarray(_plain(path))
    except (OSError, ValueError) as error:
        raise ValueError(f"{where}: {path.name} cannot be read: write it again.") from error
    image = torch.from_numpy(np.array(values, dtype=np.float32))
    if values.dtype.kind in "ui":
        image = image / np.iinfo(values.dtype).max
    elif values.dtype.kind == "b":
        image = image.float()
    if image.ndim == 2:
        image = image.unsqueeze(-1)
    if image.ndim == 3 and image.shape[-1] not in (1, 3) and image.shape[0] in (1, 3):
        image = image.movedim(0, -1)
    if image.ndim != 3 or image.shape[-1] not in (1, 3):
        raise ValueError(
            f"{where}: {path.name} has shape {tuple(values.shape)}, expected (H, W) or three colours: save"
            " one picture a file."
        )
    if not bool(torch.isfinite(image).all()):
        raise ValueError(f"{where}: {path.name} has pixels that are no numbers: draw it again.")
    if float(image.min()) < 0 or float(image.max()) > 1:
        raise ValueError(
            f"{where}: {path.name} goes from {float(image.min()):g} to {float(image.max()):g}, expected [0,"
            " 1]: scale it."
        )
    return image.movedim(-1, 0).expand(3, -1, -1).contiguous()


def rows_of(predictions: Predictions, *, seed: int = 0) -> list[Row]:
    """One row for each task, section, setting and metric of a scored file."""
    return summarise(
        (
            {
                "task": row.task, "section": row.section, "setting": row.setting, "groups": [],
                "scores": row.scores, "baselines": row.baselines, "ceiling": row.ceiling,
                "picture": row.patient,
            }
            for row in predictions.rows
        ),
        seed=seed,
    )  # fmt: skip


def set_scores(
    predictions: Predictions, root: str | Path, encoder: Encoder, *, seed: int = 0
) -> dict[str, SetScores]:
    """Task (and modality, where rows say it) -> distances of its drawings to its true images, of any size.

    Raises:
        ValueError: files as for `score_pictures`; too few images of a task.
    """
    features: dict[str, tuple[list[Tensor], list[Tensor]]] = {}
    for number, row in enumerate(predictions.rows, 1):
        where = f"{predictions.source} row {number} (id {row.id})"
        name = f"{row.task}, {row.modality}" if row.modality else row.task  # papers count each by itself
        for kept, column in zip(features.setdefault(name, ([], [])), ("drawn", "truth_image"), strict=True):
            image = read_picture(Path(root) / getattr(row, column), f"{where}, {column}")
            kept.append(encoder(image.unsqueeze(0)))
    return {
        task: compare_sets(torch.cat(drawn), torch.cat(truth), encoder=encoder.name, seed=seed)
        for task, (drawn, truth) in features.items()
    }


def score_words(
    predictions: Predictions, root: str | Path, pair: ImageText, *, progress: bool = False
) -> Predictions:
    """The same rows with the raw cosine of each drawing and its words, and as ceiling that of the true image.

    Args:
        progress: show a bar.

    Raises:
        ValueError: files as for `score_pictures`; a row without words, or whose words are about a picture.
    """
    rows = []
    bar = tqdm(predictions.rows, desc="drawings and words", leave=False, disable=not progress)
    for number, row in enumerate(bar, 1):
        where = f"{predictions.source} row {number} (id {row.id})"
        if not row.prompt.strip() or "<image>" in row.prompt:
            what = "words about a picture" if row.prompt.strip() else "no words"
            raise ValueError(
                f"{where} has {what} in prompt, expected words that say what to draw: choose such rows, as by"
                " --where task=text-to-image."
            )
        drawn, true = (
            float(image_text_scores(pair, image.unsqueeze(0), [row.prompt])["cosine"])
            for column in ("drawn", "truth_image")
            for image in [read_picture(Path(root) / getattr(row, column), f"{where}, {column}")]
        )
        rows.append(replace(row, scores={**row.scores, FITS: drawn}, ceiling={**row.ceiling, FITS: true}))
    return Predictions(rows, predictions.about | {FITS: pair.name}, predictions.source)


def _scores(
    drawn: Tensor, truth: Tensor, upstream: bool, inside: bool, legend: Legend | None
) -> Iterator[tuple[str, float]]:
    if upstream:
        for name, value in upstream_scores(drawn.unsqueeze(0), truth.unsqueeze(0)).items():
            yield f"{name}, upstream", float(value[0])
        return
    if legend is not None:
        labels, wanted = (labels_from_colours(x.unsqueeze(0), legend) for x in (drawn, truth))
        labels = torch.nn.functional.interpolate(
            labels.unsqueeze(1).float(), wanted.shape[-2:], mode="nearest-exact"
        )[:, 0].long()
        count = len(legend)
        yield "Dice", float(dice(labels, wanted, count).nanmean())
        yield "HD95", float(hausdorff(labels, wanted, count).nanmean())
        return
    images, truths = at_size_of([drawn], [truth])
    yield "PSNR", float(psnr(images, truths)[0])
    yield "SSIM", float(ssim(images, truths)[0])
    if inside:
        mask = foreground(truths)
        yield "PSNR, foreground", float(psnr(images, truths, mask)[0])
        yield "SSIM, foreground", float(ssim(images, truths, mask)[0])


def _plain(path: Path) -> Image.Image:
    """Greys stay greys; palettes and transparency become colours."""
    image = Image.open(path)
    return image if image.mode in ("L", "RGB", "1", "I;16", "F") else image.convert("RGB")
