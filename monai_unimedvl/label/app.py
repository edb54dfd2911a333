# SPDX-License-Identifier: Apache-2.0
"""The app that MONAI Label runs: which tasks there are, on which model and data store.

Its settings come from app.json in its folder, and over that from `--conf NAME VALUE`:
  model     bundle or folder of weights (default: unimedvl_nano)
  modality  how images are read that do not say, such as NIfTI: mri, ct, xray ...
  question  the usual question
  labels    names of your own masks, "liver=1, spleen=2", before any were taught
"""

from __future__ import annotations

import json
import logging
import os
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from monailabel.interfaces.app import MONAILabelApp
from monailabel.interfaces.tasks.batch_infer import BatchInferTask
from monailabel.interfaces.tasks.infer_v2 import InferTask
from monailabel.interfaces.tasks.scoring import ScoringMethod
from monailabel.interfaces.tasks.strategy import Strategy
from monailabel.interfaces.tasks.train import TrainTask
from monailabel.tasks.activelearning.first import First
from monailabel.tasks.activelearning.random import Random
from monailabel.utils.others.generic import remove_file

from monai_unimedvl import __version__
from monai_unimedvl.bundle import DEFAULT, digest
from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, LEGENDS
from monai_unimedvl.data.own import asked_for
from monai_unimedvl.label.answering import QUESTION, AnswerTask, RegionTask, ReportTask
from monai_unimedvl.label.drawing import DrawTask, SegmentTask, TranslateTask
from monai_unimedvl.label.judging import Agreement, Uncertainty
from monai_unimedvl.label.learning import FineTune
from monai_unimedvl.label.lessons import labels_in
from monai_unimedvl.label.served import Served
from monai_unimedvl.label.task_base import device_of
from monai_unimedvl.transforms import modalities

logger = logging.getLogger(__name__)

SETTINGS = "app.json"
KNOWN = ("model", "modality", "question", "labels")
OWN = "segment_own"


class UniMedVLApp(MONAILabelApp):  # type: ignore[misc]
    """Every task of the served model."""

    def __init__(self, app_dir: str, studies: str, conf: Mapping[str, str]) -> None:
        self.settings = settings_of(Path(app_dir), conf)
        self.served = Served(Path(app_dir) / "model", self.settings["model"])
        self.served.opened(device_of({}))  # a model that cannot be read should not wait for the first request
        super().__init__(
            app_dir=app_dir, studies=studies, conf=dict(conf), name="UniMedVL",
            description="One model that reads and draws medical images. Not for diagnosis.",
            version=__version__,
        )  # fmt: skip

    @property
    def own_labels(self) -> dict[str, int]:
        """Name -> number of the masks that were taught, or that the settings name."""
        taught = self.served.told().get("labels") or {}
        return dict(taught) or labels_in(self.settings["labels"])

    def init_infers(self) -> dict[str, InferTask]:
        """The infer tasks by name."""
        served, modality = self.served, self.settings["modality"]
        tasks: dict[str, InferTask] = {
            "answer": AnswerTask(served, modality, self.settings["question"] or QUESTION),
            "report": ReportTask(served, modality),
            "region": RegionTask(served, modality),
            "translate": TranslateTask(served, modality),
            "draw": DrawTask(served, modality),
        }
        for task, legend in LEGENDS.items():
            name = task.replace("seg-", "segment_")
            tasks[name] = SegmentTask(served, INSTRUCTIONS[task], legend, modality)
        if self.own_labels:
            asked = asked_for(self.own_labels)
            tasks[OWN] = SegmentTask(served, asked["words"], asked["legend"], modality, asked["values"])
        return tasks

    def init_trainers(self) -> dict[str, TrainTask]:
        """The train task."""
        return {"finetune": FineTune(self.served, self.own_labels, self.settings["modality"])}

    def init_strategies(self) -> dict[str, Strategy]:
        """Which image is labelled next."""
        usual = self.settings["question"] or QUESTION
        least = Uncertainty(self.served, self.settings["modality"], usual)
        return {"uncertainty": least, "random": Random(), "first": First()}

    def init_scoring_methods(self) -> dict[str, ScoringMethod]:
        """How labels are compared."""
        return {"agreement": Agreement(self.own_labels)}

    def init_batch_infer(self) -> Callable[..., Any]:
        """A study list."""
        return StudyList()

    def info(self) -> dict[str, Any]:
        """As MONAI Label's; with the task of labels that were taught since the start."""
        self._renew()
        told: dict[str, Any] = super().info()
        told["weights"] = digest(self.served.source)
        return told

    def infer(self, request: Mapping[str, Any], datastore: Any = None) -> dict[str, Any]:
        """As MONAI Label's, but files of this machine are none of a client's business.

        Raises:
            ValueError: the image is a path outside of the data store, and nothing that was sent.
        """
        if request.get("model") == OWN:
            self._renew()
        image = request.get("image")
        if isinstance(image, str) and os.path.exists(image) and not self._sent(Path(image)):
            raise ValueError(
                "image is a path of the server, expected an id of the data store: send the file."
            )
        found: dict[str, Any] = super().infer(request, datastore)
        return found

    def _sent(self, image: Path) -> bool:
        """Whether a path is that of an upload, of a session, or in the data store."""
        known = [tempfile.gettempdir(), self.studies, getattr(self._sessions, "store_path", None)]
        return any(image.resolve().is_relative_to(Path(root).resolve()) for root in known if root)

    def _renew(self) -> None:
        """Register the task of one's own labels anew where other labels were taught."""
        task, labels = self._infers.get(OWN), self.own_labels
        if labels and (task is None or list(task.labels.items()) != list(labels.items())):
            self._infers: dict[str, Any] = self.init_infers()

    def _download_dcmqi_tools(self) -> None:
        """Nothing: SEG is written by highdicom, and no program is fetched from the network."""


class StudyList(BatchInferTask):  # type: ignore[misc]
    """One task over many images; a bad one stops nothing, and the log says how many are done."""

    def __call__(
        self, request: Mapping[str, Any], datastore: Any, infer: Callable[..., Any]
    ) -> dict[str, Any]:
        """Image -> what MONAI Label's infer gives, or {"error": ...}."""
        images = sorted(self.get_images(request, datastore))
        most = int(request.get("max_batch_size") or 0)
        images = images[:most] if most > 0 else images
        result: dict[str, Any] = {}
        for n, image in enumerate(images, 1):
            one = {**request, "image": image, "save_label": request.get("save_label", True)}
            try:
                made = infer(one, datastore)
                if made.get("file"):
                    remove_file(made.pop("file"))
                result[image] = made
            except (ValueError, OSError, RuntimeError) as error:
                result[image] = {"error": str(error)}
            failed = sum("error" in value for value in result.values())
            logger.info("%d of %d images done, %d failed", n, len(images), failed)
        return result


def settings_of(app_dir: Path, conf: Mapping[str, str]) -> dict[str, str]:
    """app.json, and over it what was given at the start.

    Raises:
        ValueError: an unreadable file or an unknown name or modality.
    """
    file = app_dir / SETTINGS
    kept: Any = {}
    if file.is_file():
        try:
            kept = json.loads(file.read_text("utf8"))
            assert isinstance(kept, dict)
        except (OSError, ValueError, AssertionError) as error:
            raise ValueError(
                f"{SETTINGS} is damaged, expected JSON with names and values: mend it."
            ) from error
    given = {key: value for key, value in conf.items() if key in KNOWN}
    if unknown := sorted(set(kept) - set(KNOWN)):
        raise ValueError(f"{SETTINGS} has {unknown[0]!r}, expected some of {', '.join(KNOWN)}: rename it.")
    found = {"model": DEFAULT, "modality": "", "question": "", "labels": "", **kept, **given}
    modality = found["modality"]
    if modality and modality not in modalities() and not Path(modality).is_file():
        raise ValueError(
            f"modality is {modality!r}, expected a recipe's YAML or one of {', '.join(modalities())}: "
            "change it."
        )
    labels_in(found["labels"])
    return found
