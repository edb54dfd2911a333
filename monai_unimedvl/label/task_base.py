# SPDX-License-Identifier: Apache-2.0
"""What the infer tasks share: settings out of a request, the model, facts, latencies, answers."""

from __future__ import annotations

import logging
import time
from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from monailabel.interfaces.tasks.infer_v2 import InferTask, InferType

from monai_unimedvl.label.knobs import Knobs, settled, shown
from monai_unimedvl.label.pictures import resolved, source_of
from monai_unimedvl.label.served import Opened, Served
from monai_unimedvl.provenance import Facts, sha256
from monai_unimedvl.transforms.dicom import series_uids

logger = logging.getLogger(__name__)

Result = tuple[str | None, dict[str, Any]]  # file or None, and what is told


@dataclass
class Asked:
    """One request, on its way to an answer.

    Args:
        request: as MONAI Label gives it. values: its settings, all filled in. ignored: names without meaning.
        model: the weights that answer it.
        modality: how images are read that do not say.
        told: what goes back beside a file.
    """

    request: Mapping[str, Any]
    values: dict[str, Any]
    ignored: list[str]
    model: Opened
    modality: str = ""
    told: dict[str, Any] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The image.

        Raises:
            ValueError: the request has none.
        """
        image = self.request.get("image")
        if not isinstance(image, str) or not image:
            raise ValueError(
                "the request names no image that is here, expected an id of the data store, a file or a"
                " session: send one."
            )
        return source_of(image)

    def reading(self, **more: Any) -> dict[str, Any]:
        """The settings of how the image is read, with `more` over them.

        Raises:
            ValueError: nobody says which modality it is.
        """
        return resolved({**self.values, **more}, self.path, self.modality)

    def facts(self, prompt: str, task: str, **known: Any) -> Facts:
        """How the result comes about."""
        path = self.path
        return Facts(
            prompt, self.values.get("seed", 0), self.model.digest, task, [sha256(path)],
            sources=series_uids(path), **known,
        )  # fmt: skip


class Task(InferTask):  # type: ignore[misc]
    """An infer task of MONAI Label on the served model; a subclass says in `answer` what it does.

    Args:
        served: the weights.
        knobs: what a request may set.
        labels: name -> number of a mask.
        modality: how images are read that do not say, such as NIfTI.
    """

    def __init__(
        self, served: Served, description: str, knobs: Knobs, *, type: str = InferType.OTHERS,
        labels: Mapping[str, int] | None = None, modality: str = "",
    ) -> None:  # fmt: skip
        super().__init__(type, dict(labels or {}), 3, description, shown(knobs))
        self.served, self.knobs, self.modality = served, knobs, modality

    def is_valid(self) -> bool:
        """Always: the app would not have started without weights."""
        return True

    def __call__(self, request: Mapping[str, Any]) -> Result:
        """A file or None, and the answer as JSON values.

        Raises:
            ValueError: a setting or an image that does not fit.
        """
        begun = time.perf_counter()
        values, ignored = settled(self.knobs, request)
        model = self.served.opened(device_of(request))
        ready = time.perf_counter()
        asked = Asked(request, values, ignored, model, self.modality)
        file, told = self.answer(asked)
        done = time.perf_counter()
        name = str(request.get("model", ""))
        logger.info("%s: answered in %.2f s", name, done - begun)  # not what, nor about whom
        told = {
            **told,
            "label_names": told.get("label_names", self.labels),
            "settings": values,
            "ignored": ignored,
            "weights": model.digest,
            "latencies": {
                "pre": round(ready - begun, 3),
                "infer": round(done - ready, 3),
                "total": round(done - begun, 3),
            },
        }
        return file, told

    @abstractmethod
    def answer(self, asked: Asked) -> Result:
        """What is asked for."""


def device_of(request: Mapping[str, Any]) -> str:
    """The device that is named, where it is there; viewers send "cuda" everywhere."""
    from monailabel.utils.others.generic import name_to_device

    return str(name_to_device(request.get("device")))
