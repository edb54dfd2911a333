# SPDX-License-Identifier: Apache-2.0
"""Which image to label next, and how well the model's labels agree with those that people handed in."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy

from monai_unimedvl.evaluation.text import token_f1
from monai_unimedvl.label.answering import QUESTION, SPEAKING, confidence, speak
from monai_unimedvl.label.knobs import Knob, settled
from monai_unimedvl.label.lessons import FINAL, ORIGINAL, names_of, words_of
from monai_unimedvl.label.pictures import pictures_of, reading_knobs, resolved, source_of
from monai_unimedvl.label.served import Served
from monai_unimedvl.label.task_base import device_of
from monai_unimedvl.label.writing import read_nrrd

logger = logging.getLogger(__name__)

KEY = "unimedvl_uncertainty"  # in the data store's notes on an image


class Uncertainty(Strategy):  # type: ignore[misc]
    """The image without a label about which the model is least sure of its answer.

    Sure is the mean log-probability of the answer's tokens, so that long answers are not called unsure. What
    was measured is kept with the image, until other weights are served or another question is asked.
    """

    def __init__(self, served: Served, modality: str = "", question: str = QUESTION) -> None:
        super().__init__("The image whose answer the model is least sure of")
        self.served, self.modality = served, modality
        self.knobs = {
            "question": Knob(question),
            **reading_knobs(),
            **SPEAKING,
            "max_images": Knob(50, 1, 100_000),
        }

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any] | None:
        """{"id", "score", "confidence", ...} of the image; None where all are labelled.

        Raises:
            ValueError: a setting that does not fit, or not one image that can be read.
        """
        values, _ = settled(self.knobs, request)
        images = sorted(datastore.get_unlabeled_images(request.get("label_tag"), request.get("labels")))
        if not images:
            return None
        model, measured = self.served.opened(device_of(request)), {}
        asked = [values[name] for name in ("question", "modality", "plane", "slice", "count", "window")]
        key = f"{model.digest[:16]} {json.dumps(asked)}"
        fresh, reason = 0, ""
        for image in images:
            known = (datastore.get_image_info(image) or {}).get(KEY) or {}
            if known.get("key") == key:
                measured[image] = float(known["logprob"])
                continue
            if fresh >= values["max_images"]:
                continue
            fresh += 1
            try:
                path = source_of(datastore.get_image_uri(image))
                pictures, _ = pictures_of(path, resolved(values, path, self.modality), model.network)
            except (ValueError, OSError, RuntimeError) as error:  # MONAI Label fetches and converts
                reason = str(error)
                logger.warning("an image cannot be read and is passed over")
                continue
            answer = speak(model, [*(p.as_tensor() for p in pictures), values["question"]], values)
            measured[image] = sum(answer.logprobs) / max(1, len(answer.logprobs))
            note = {"key": key, "logprob": measured[image], "confidence": confidence(answer)}
            datastore.update_image_info(image, {KEY: note})
        if not measured:
            raise ValueError(f"none of {len(images)} images can be asked about ({reason}): set the modality.")
        chosen = min(measured, key=lambda image: (measured[image], image))
        logger.info("asked about %d images anew, %d known", fresh, len(measured) - fresh)
        return {
            "id": chosen,
            "score": -measured[chosen],
            "logprob": measured[chosen],
            "measured": len(measured),
        }


class Agreement(ScoringMethod):  # type: ignore[misc]
    """Labels that people handed in against those of the model: Dice of each name, token F1 of words.

    MONAI Label's own Dice multiplies label numbers, so that it is right for masks of one label only.
    """

    def __init__(self, labels: Mapping[str, int] | None = None) -> None:
        super().__init__("Agreement of final and original labels: Dice by name, token F1 of words")
        self.labels = dict(labels or {})

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Image -> {"dice": {name: value}, "mean_dice": value} or {"token_f1": value}; kept with the image.

        Raises:
            ValueError: nothing: pairs that cannot be compared are passed over, with a warning.
        """
        truth, made = request.get("y") or FINAL, request.get("y_pred") or ORIGINAL
        result: dict[str, Any] = {}
        for image in datastore.list_images():
            tags = datastore.get_labels_by_image_id(image)
            if truth not in tags or made not in tags:
                continue
            files = [Path(datastore.get_label_uri(image, tag)) for tag in (truth, made)]
            words = [file.suffix == ".json" for file in files]
            if words[0] != words[1]:
                continue
            try:
                score = self._words(*files) if words[0] else self._masks(image, truth, datastore, *files)
            except ValueError as error:
                logger.warning("two labels cannot be compared: %s", str(error).split(",")[-1].strip())
                continue
            datastore.update_image_info(image, {"agreement": score})
            result[image] = score
        logger.info("compared %d pairs of labels", len(result))
        return result

    def _words(self, truth: Path, made: Path) -> dict[str, Any]:
        """Each question of the truth that the model was asked too."""
        said = {item["words"]: item["answer"] for item in words_of(made, Path())}
        pairs = [(said[i["words"]], i["answer"]) for i in words_of(truth, Path()) if i["words"] in said]
        if not pairs:
            raise ValueError("they answer different questions")
        return {"token_f1": sum(token_f1(*pair) for pair in pairs) / len(pairs), "answers": len(pairs)}

    def _masks(self, image: str, tag: str, datastore: Any, truth: Path, made: Path) -> dict[str, Any]:
        first, second = _labels(truth), _labels(made)
        if first.shape != second.shape:
            raise ValueError(f"their shapes are {first.shape} and {second.shape}")
        try:
            names = names_of(datastore.get_label_info(image, tag) or {}, self.labels)
        except ValueError:
            names = {f"label {n}": int(n) for n in np.union1d(first, second) if n}
        each = {name: _dice(first == n, second == n) for name, n in names.items()}
        known = [value for value in each.values() if value is not None]
        return {"dice": each, "mean_dice": sum(known) / len(known) if known else None}


def _dice(first: np.ndarray, second: np.ndarray) -> float | None:
    """None where neither has it."""
    total = int(first.sum()) + int(second.sum())
    return 2 * int((first & second).sum()) / total if total else None


def _labels(file: Path) -> np.ndarray:
    if file.suffix == ".nrrd":
        return read_nrrd(file)[0]
    if file.name.endswith((".nii", ".nii.gz")):
        return np.asarray(nibabel.load(file).dataobj).astype(np.int64)  # type: ignore[attr-defined]
    raise ValueError(f"a label in {file.suffix} came, expected NIfTI or NRRD")
