# SPDX-License-Identifier: Apache-2.0
"""The train task: the bundle's own MONAI training on the data store's labels, published when it is better.

The run lies in model/tuned/STAMP. Validation before the first step counts too, so weights that have not
become better on what is held out are not published; a run that is killed publishes nothing.
"""

from __future__ import annotations

import json
import logging
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from monai.bundle import ConfigWorkflow
from monai.handlers import StatsHandler
from monailabel.interfaces.tasks.train import TrainTask

from monai_unimedvl import bundle
from monai_unimedvl.atomic import write
from monai_unimedvl.label.knobs import Knob, settled, shown
from monai_unimedvl.label.lessons import Gathered, gather, labels_in
from monai_unimedvl.label.pictures import AUTO, resolved
from monai_unimedvl.label.served import TUNED, Served
from monai_unimedvl.label.task_base import device_of
from monai_unimedvl.transforms import modalities

logger = logging.getLogger(__name__)

ITEMS, SCORES = "items.json", "scores.json"
LOSS = "val_loss"  # the key metric of the bundle's train.json
KEPT = 5  # runs whose weights are kept


class FineTune(TrainTask):  # type: ignore[misc]
    """Fine-tuning of the served model on stored masks, questions and reports.

    Args:
        served: the weights, before and after.
        labels: name -> number of masks that come without names.
        modality: how images are read that do not say.
    """

    def __init__(self, served: Served, labels: Mapping[str, int] | None = None, modality: str = "") -> None:
        super().__init__("Fine-tune the model on the labels of the data store")
        self.served = served
        self.modality = modality
        self.knobs = {
            "kinds": Knob(("all", "masks", "words")),
            "modality": Knob((AUTO, *modalities())),
            "labels": Knob(", ".join(f"{name}={n}" for name, n in (labels or {}).items())),
            "max_epochs": Knob(10, 1, 10_000),
            "steps_per_epoch": Knob(20, 1, 100_000),
            "lr": Knob(5e-4, 1e-8, 1.0),
            "max_tokens": Knob(1500, 64, 1_000_000),
            "slices": Knob(8, 1, 1000),
            "val_split": Knob(0.2, 0.0, 0.9),
            "seed": Knob(0, 0),
            "pictures": Knob(False),
            "publish": Knob(("better", "always", "never")),
        }

    def config(self) -> dict[str, Any]:
        """The settings, for /info."""
        return shown(self.knobs)

    def stats(self) -> dict[str, Any]:
        """The scores of the newest run that came to its end."""
        runs = sorted((self.served.home / TUNED).glob(f"*/{SCORES}"))
        return json.loads(runs[-1].read_text("utf8")) if runs else {}

    def __call__(self, request: Mapping[str, Any], datastore: Any) -> dict[str, Any]:
        """Train, and publish; returns the scores.

        Raises:
            ValueError: a setting that does not fit, or nothing to learn from.
        """
        values, ignored = settled(self.knobs, request)
        named, folder = labels_in(values["labels"]), self._folder()
        try:
            found = gather(datastore, named, values["kinds"], folder)
            values["modality"] = self._modality(values, found)
        except ValueError:
            shutil.rmtree(folder)
            raise
        write(folder / ITEMS, json.dumps(found.items, indent=1))
        logger.info(
            "learning from %d labels (%d cannot be used), %d epochs of %d steps",
            len(found.items), len(found.skipped), values["max_epochs"], values["steps_per_epoch"],
        )  # fmt: skip
        begun, before = time.time(), self.served.source
        first, best = self._train(folder, before, values, device_of(request))
        scores = self._judged(folder, before, values, found, first, best)
        scores |= {"seconds": round(time.time() - begun, 1), "ignored": ignored, "settings": values}
        write(folder / SCORES, json.dumps(scores, indent=2) + "\n")
        logger.info(
            "validation loss %.4f before, %.4f after: %s", first, best,
            "published" if scores["published"] else "the weights of before go on serving",
        )  # fmt: skip
        self._tidy()
        return scores

    def _train(
        self, folder: Path, before: str, values: Mapping[str, Any], device: str
    ) -> tuple[float, float]:
        """The validation loss at the start and at its lowest; the best weights lie in folder/models."""
        data = {
            "_target_": "monai_unimedvl.data.own.list_kept",
            "path": str(folder / ITEMS),
            "holdout": values["val_split"],
            "seed": values["seed"],
            "slices": values["slices"],
        }
        given: dict[str, Any] = {
            "bundle_root": str(bundle.find(before).resolve()),
            "ckpt_dir": str(folder / "models"),
            "output_dir": str(folder),
            "device": device,
            "modality": values["modality"],
            "epochs": values["max_epochs"],
            "epoch_length": values["steps_per_epoch"],
            "lr": values["lr"],
            "budget": values["max_tokens"],
            "seed": values["seed"],
            "sheets#count": 6 if values["pictures"] else 0,  # drawn at every validation: slow on a CPU
            "train#dataset#data": {**data, "section": "train"},
            "validate#dataset#data": {**data, "section": "val"},
        }
        config = bundle.find(bundle.DEFAULT) / "configs" / "train.json"
        workflow = ConfigWorkflow(str(config), workflow_type="train", logging_file=False, **given)
        workflow.initialize()
        losses: list[float] = []

        def note(engine: Any) -> None:
            losses.append(float(engine.state.metrics[LOSS]))
            logger.info("epoch %d: validation loss %.4f", len(losses) - 1, losses[-1])

        evaluator = workflow.parser.get_parsed_content("validate#evaluator")
        StatsHandler(iteration_log=False, epoch_print_logger=note).attach(evaluator)
        workflow.run()
        workflow.finalize()
        return losses[0], min(losses)

    def _judged(
        self, folder: Path, before: str, values: Mapping[str, Any], found: Gathered, first: float,
        best: float,
    ) -> dict[str, Any]:  # fmt: skip
        """Publish what was learned where it should be; returns the scores."""
        better = best < first
        wanted = values["publish"] == "always" or (values["publish"] == "better" and better)
        told: dict[str, Any] = {
            "val_loss_before": first,
            "val_loss": best,
            "labels": found.labels or self.served.told().get("labels", {}),
            "modality": values["modality"],
            "items": len(found.items),
            "skipped": len(found.skipped),
            "from": bundle.digest(before),
        }
        if wanted:
            self.served.publish(folder / "models", told)
        return {**told, "published": wanted, "weights": bundle.digest(folder / "models")}

    def _modality(self, values: Mapping[str, Any], found: Gathered) -> str:
        """The one by whose recipe all images are read.

        Raises:
            ValueError: they are of several, or do not say.
        """
        paths = {Path(item["image"]) for item in found.items}
        names = sorted({resolved(values, path, self.modality)["modality"] for path in paths})
        if len(names) > 1:
            raise ValueError(
                f"the labelled images are of several modalities ({', '.join(names)}), expected one: name it"
                " in `modality`, or label those of one first."
            )
        return names[0]

    def _folder(self) -> Path:
        """A new folder of a run, later in the alphabet than those before."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        for n in range(1000):
            folder = self.served.home / TUNED / (f"{stamp}-{n:03d}")
            if not folder.exists():
                folder.mkdir(parents=True)
                return folder
        raise ValueError(f"{stamp} has 1000 runs, expected fewer: wait a second.")

    def _tidy(self) -> None:
        """Remove the oldest runs, but never what is served."""
        serving = Path(self.served.source).resolve()
        runs = sorted(path for path in (self.served.home / TUNED).iterdir() if path.is_dir())
        for old in runs[:-KEPT]:
            if not serving.is_relative_to(old.resolve()):
                shutil.rmtree(old, ignore_errors=True)
