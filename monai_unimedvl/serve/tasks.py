# SPDX-License-Identifier: Apache-2.0
"""What the panel can do: ask about an image, segment and edit it, draw from words; results are marked."""

from __future__ import annotations

import logging
import secrets
import threading
from collections.abc import Sequence
from concurrent.futures import CancelledError
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from torch import Tensor

from monai_unimedvl import provenance
from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, LEGENDS
from monai_unimedvl.inferers import ImageInferer, Labels, VolumeInferer
from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.provenance import Facts
from monai_unimedvl.sequence import Prompt
from monai_unimedvl.serve.limits import Refused
from monai_unimedvl.serve.results import Result, Results
from monai_unimedvl.serve.service import Service
from monai_unimedvl.serve.studies import PICTURE_AFFINE, Study
from monai_unimedvl.serve.worker import Manner, Worker
from monai_unimedvl.transforms.geometry import put_back
from monai_unimedvl.transforms.masks import ColoursToLabels
from monai_unimedvl.transforms.restack import Restack
from monai_unimedvl.transforms.stored import place_of
from monai_unimedvl.transforms.structured import parse_report

_log = logging.getLogger(__name__)

# Colours of an overlay on grey pictures, told apart by most colour-blind people; "uncertain" is the last.
OVERLAY = (
    (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (213, 94, 0), (204, 121, 167),
    (0, 114, 178), (170, 210, 120), (150, 110, 220), (240, 160, 150),
)  # fmt: skip
UNSURE = (128, 128, 128)
WHOLE_AT_ONCE = 2  # volumes that are segmented at a time


@dataclass
class Job:
    """A volume that is being segmented, slice by slice."""

    id: str
    total: int
    done: int = 0
    stopped: bool = False
    failed: Refused | None = None
    result: dict[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """As the page reads it."""
        if self.result is not None:
            state = "done"
        elif self.failed is not None:
            state = "failed"
        else:
            state = "stopped" if self.stopped else "running"
        error = self.failed.message if self.failed else None
        return {
            "id": self.id, "state": state, "done": self.done, "total": self.total, "error": error,
            "result": self.result,
        }  # fmt: skip


class Tasks:
    """The four of them, for one service."""

    def __init__(self, service: Service, results: Results) -> None:
        self.service, self.results = service, results
        self._jobs: dict[str, Job] = {}
        self._lock = threading.Lock()

    async def ask(self, study: Study, plane: str, mm: Sequence[float], question: str) -> dict[str, Any]:
        """An answer about the slice at a place."""
        service = self.service
        picture = await service.in_thread(study.picture, plane, mm, service.square)
        words = min(200, service.limits.words)
        said = []
        async with aclosing(
            service.listen([picture.as_tensor(), question], max_new_tokens=words)
        ) as tokens:  # fmt: skip
            async for token in tokens:
                said.append(token)
        answer = said[-1].request.answer
        facts = self._facts(study, question, "ask", picture)
        result = self.results.add(
            "answer.json", lambda path: provenance.save_text(answer.text, path, facts)
        )  # fmt: skip
        report = parse_report(answer.text, [picture])
        each = float(np.exp(np.mean(answer.logprobs))) if answer.logprobs else None
        return {
            "answer": answer.text, "where": study.where(picture, mm), "plane": plane, "mm": list(mm),
            "stop_reason": answer.stop_reason, "probability": each, "regions": list(report.regions),
            "result": result.id, "name": result.name,
        }  # fmt: skip

    async def segment(
        self, study: Study, plane: str, mm: Sequence[float], task: str, seed: int
    ) -> dict[str, Any]:  # fmt: skip
        """The mask of the slice at a place, as a volume on the grid of the image."""
        service, instruction = self.service, INSTRUCTIONS[task]
        picture = await service.in_thread(study.picture, plane, mm, service.square)
        (drawn,) = await service.draw([[picture.as_tensor(), instruction]], service.editing, seed)
        facts = self._facts(study, instruction, task, picture, seed, service.editing)
        return await service.in_thread(self._mask, study, plane, mm, picture, drawn, task, facts)

    def segment_all(self, study: Study, plane: str, task: str, seed: int) -> Job:
        """Start to segment every slice of a volume.

        Raises:
            Refused: it is no volume, or too many are being segmented.
        """
        if study.kind != "volume":
            raise Refused("This image is no volume of slices: segment what is shown.")
        slices = study.prepared(self.service.square).slices(plane)
        with self._lock:
            busy = [job for job in self._jobs.values() if job.told()["state"] == "running"]
            if len(busy) >= WHOLE_AT_ONCE:
                raise Refused(
                    f"{len(busy)} volumes are being segmented already, at most {WHOLE_AT_ONCE} are: wait.",
                    status=429, code="queue_full",
                )  # fmt: skip
            job = Job(secrets.token_urlsafe(12), len(slices))
            self._jobs[job.id] = job
            for old in list(self._jobs)[:-50]:
                del self._jobs[old]
        work = threading.Thread(
            target=self._segment_all, args=(job, study, plane, task, seed), daemon=True
        )  # fmt: skip
        work.start()
        return job

    def job(self, id_: str) -> Job:
        """A job by its id.

        Raises:
            Refused: there is none.
        """
        if id_ not in self._jobs:
            raise Refused("There is no such job.", status=404, code="gone")
        return self._jobs[id_]

    async def edit(
        self, study: Study, plane: str, mm: Sequence[float], instruction: str, task: str, seed: int
    ) -> dict[str, Any]:
        """The slice at a place, turned into another by an instruction: a PNG."""
        service = self.service
        picture = await service.in_thread(study.picture, plane, mm, service.square)
        (drawn,) = await service.draw([[picture.as_tensor(), instruction]], service.editing, seed)
        shown = put_back(drawn, picture, until="SquarePixels").clamp(0, 1).as_subclass(Tensor)
        facts = self._facts(study, instruction, task, picture, seed, service.editing)
        result = self.results.add("edited.png", lambda path: provenance.save_image(shown, path, facts))
        return {"result": result.id, "name": result.name, "where": study.where(picture, mm), "seed": seed}

    async def draw(self, words: str, seed: int) -> dict[str, Any]:
        """An image from words: a PNG."""
        service = self.service
        (drawn,) = await service.draw([[words]], service.drawing, seed)
        facts = Facts(
            words, seed, service.digest, "draw", steps=service.drawing.steps,
            text_guidance=service.drawing.text, image_guidance=service.drawing.image,
        )  # fmt: skip
        result = self.results.add("drawn.png", lambda path: provenance.save_image(drawn, path, facts))
        return {"result": result.id, "name": result.name, "seed": seed}

    def _facts(
        self, study: Study, words: str, task: str, picture: MetaTensor | None, seed: int = 0,
        manner: Manner | None = None,
    ) -> Facts:  # fmt: skip
        slices = [] if picture is None else [picture.meta["source"]["index"]]
        return Facts(
            words, seed, self.service.digest, task, study.inputs, slices if study.kind != "image" else (),
            manner and manner.steps, manner and manner.text, manner and manner.image, study.sources,
        )  # fmt: skip

    def _mask(
        self, study: Study, plane: str, mm: Sequence[float], picture: MetaTensor, drawn: Tensor, task: str,
        facts: Facts,
    ) -> dict[str, Any]:  # fmt: skip
        if study.kind == "volume":
            output, part = Labels(LEGENDS[task]), study.prepared(self.service.square)
            affine = part.volume.affine
            seen = part.slices(plane).plane
            back = Restack(part.volume.shape[1:], affine, seen, dtype=np.uint8, mode=output.mode)
            back.put(output.seen(drawn, part, 1), picture, last=output.chosen)
            labels = back.values[0]
        else:
            flat = ColoursToLabels(LEGENDS[task], threshold=0.5).labels(drawn.cpu().unsqueeze(0))[0]
            shown = put_back(flat.to(torch.uint8), picture, until="Read")  # as the page shows it
            shown = shown.as_subclass(Tensor).numpy()  # (H, W)
            depth = study.image.shape[3] if study.kind == "frames" else 1
            labels = np.zeros((shown.shape[1], shown.shape[0], depth), np.uint8)
            labels[..., min(max(round(mm[2]), 0), depth - 1)] = shown.T
            affine = PICTURE_AFFINE
        told = self._kept(labels, affine, task, facts) | {"where": study.where(picture, mm)}
        if study.kind == "image":
            whole = put_back(flat.to(torch.uint8), picture)
            if (there := place_of(whole)) is not None:  # to take along: as the file lies, not as it is shown
                told["result"] = self._saved(whole.as_subclass(Tensor).T[..., None], there, facts).id
        return told

    def _saved(self, labels: Tensor, affine: np.ndarray, facts: Facts) -> Result:
        return self.results.add(
            "mask.nii.gz", lambda path: provenance.save_volume(labels, affine, path, facts)
        )

    def _kept(self, labels: np.ndarray, affine: np.ndarray, task: str, facts: Facts) -> dict[str, Any]:
        """A label volume (X, Y, Z) as a marked file, also the overlay, and its legend with counts."""
        result = self._saved(torch.from_numpy(labels), affine, facts)
        volume = abs(float(np.linalg.det(affine[:3, :3]))) / 1000  # ml
        placed = affine is not PICTURE_AFFINE
        names = [*LEGENDS[task], "uncertain"]
        counts = np.bincount(labels.reshape(-1), minlength=len(names) + 1).tolist()
        colours = [*OVERLAY[: len(names) - 1], UNSURE]
        return {
            "result": result.id, "overlay": result.id, "name": result.name, "task": task,
            "legend": [
                {
                    "label": n, "name": name, "colour": list(colour), "voxels": counts[n],
                    "ml": round(counts[n] * volume, 2) if placed else None,
                }
                for n, (name, colour) in enumerate(zip(names, colours, strict=True), 1)
                if n < len(names) or counts[n]
            ],
        }  # fmt: skip

    def _segment_all(self, job: Job, study: Study, plane: str, task: str, seed: int) -> None:
        service = self.service
        try:
            infer = VolumeInferer(
                _Through(service.worker, service.editing, seed, job), study.chain(service.square),
                planes=plane, output=Labels(LEGENDS[task]),
            )  # fmt: skip
            made = infer(study.image, service.network, INSTRUCTIONS[task])
            assert isinstance(made, MetaTensor)
            facts = self._facts(study, INSTRUCTIONS[task], task, None, seed, service.editing)
            labels = made.as_subclass(Tensor)[0].numpy()
            result = self._kept(labels, made.affine.numpy(), task, facts)
            job.done = job.total
            seen = study.prepared(service.square).slices(plane).plane
            job.result = {**result, "where": f"every {seen} slice"}
        except CancelledError:
            job.stopped = True
        except (ValueError, Refused) as error:
            job.failed = Refused(str(error))
        except Exception as error:  # whatever it was, the page must learn of it
            _log.error("segmenting a volume failed: %s", type(error).__name__)
            job.failed = Refused("The server failed on this volume: see its log.", status=500)


class _Through(ImageInferer):
    """An `ImageInferer` whose drawings are made by the worker, among those of others."""

    def __init__(self, worker: Worker, manner: Manner, seed: int, job: Job) -> None:
        super().__init__(worker.tokenizer, steps=manner.steps, seed=seed)
        self.worker, self.manner, self.job = worker, manner, job

    def __call__(  # type: ignore[override]
        self, batch: Sequence[Prompt], network: UniMedVL, *args: Any, **kwargs: Any
    ) -> list[Tensor]:
        """An image for each prompt; raises CancelledError when the job was stopped."""
        assert isinstance(self.seed, int)
        asked = []
        try:
            for prompt in batch:
                if self.job.stopped:
                    raise CancelledError
                asked.append(self.worker.draw(prompt, self.manner, self.seed))
            images = [one.future.result() for one in asked]
        finally:
            for one in asked:
                one.abandon()
        self.job.done = min(self.job.done + len(images), self.job.total)
        return images
