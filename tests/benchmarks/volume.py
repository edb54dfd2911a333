# SPDX-License-Identifier: Apache-2.0
"""VolumeInferer over the ICBM152 brain (197 x 233 x 189, nilearn): speed, memory, and slices drawn together.

Speed: the nano's tissue map of axial slices by VolumeInferer, against ImageInferer on the same pictures, cut
beforehand, in the same batches, and the recipe alone; the sides take turns. The same with guidance, on every
second slice. Memory: the highest resident size above that of the process with the model loaded, for one and
for four times the slices, and for a file and a series of the size of a CT. Through plane: coronal and
sagittal sections of a grey matter map drawn slice by slice, and in groups, against the truth.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import nibabel
import numpy as np
import pydicom
import torch
from _timing import arguments, load_average, report, take_turns
from monai.utils import optional_import
from pydicom.data import get_testdata_file
from torch import Tensor

from monai_unimedvl import ImageInferer, VolumeInferer, load, recipe
from monai_unimedvl.data.atlas_tasks import INSTRUCTIONS, LEGENDS
from monai_unimedvl.evaluation.benchmarks import EDIT_STEPS
from monai_unimedvl.evaluation.image import ssim
from monai_unimedvl.flow import Guidance
from monai_unimedvl.inferers import Grey, GroupInferer, Labels
from monai_unimedvl.transforms import Recipe
from monai_unimedvl.transforms.lazy import prepare

BATCH, STEPS = 8, EDIT_STEPS[0]  # as the bundle ships
SLAB = slice(40, 130, 2)  # slices of the through-plane sections, 2 mm apart: from the orbits to the vertex
MIB = 2**20


def brain(kind: str = "t1") -> Path:
    """The template, or its map of grey matter ("gm")."""
    nilearn, found = optional_import("nilearn")
    if not found:
        raise SystemExit("this benchmark needs nilearn's template: pip install nilearn")
    name = f"mni_icbm152_{kind}_tal_nlin_sym_09a_converted.nii.gz"
    return Path(nilearn.__file__).parent / "datasets" / "data" / name


def framed() -> Recipe:
    """As the nano was trained: 192 mm around the middle."""
    return recipe("mri", field=192.0, centre="middle")


def speed(rounds: int, path: Path, guidance: Guidance | None = None) -> list[list[str]]:
    """Slices a second, ours and bare; with guidance the ratio alone."""
    network, tokenizer = load("unimedvl_nano")
    words = INSTRUCTIONS["seg-tissue"]
    (part,) = prepare(framed(), path)
    cut = part.slices("axial")
    pictures = [part.picture(cut[i]) for i in range(len(cut))]
    pictures = [one for one in pictures if float(one.max() - one.min()) >= 0.02]
    infer = ImageInferer(tokenizer, steps=STEPS, guidance=guidance or Guidance())

    def bare(tick: Callable[[], None]) -> None:
        tick()
        for first in range(0, len(pictures), BATCH):
            infer([[one, words] for one in pictures[first : first + BATCH]], network)
        tick()

    def ours(tick: Callable[[], None]) -> None:
        tick()
        VolumeInferer(infer, framed(), words, batch=BATCH, output=Labels(LEGENDS["seg-tissue"]))(
            path, network
        )
        tick()

    def cutting(tick: Callable[[], None]) -> None:
        tick()
        (part,) = prepare(framed(), path)
        cut = part.slices("axial")
        for index in range(len(cut)):
            part.picture(cut[index])
        tick()

    watches = take_turns({"bare": bare, "ours": ours, "recipe": cutting}, rounds)
    cpu = {name: median(watch.cpu) for name, watch in watches.items()}
    wall = {name: median(watch.wall) for name, watch in watches.items()}
    count = len(pictures)
    if guidance is not None:
        ratio, alone = (cpu["bare"] + cpu["recipe"]) / cpu["ours"], cpu["bare"] / cpu["ours"]
        return [
            [f"**ratio with the recipe, guidance {guidance.text:g}**", f"**{ratio:.3f}**", "0.90 or more"],
            [f"ratio without it, guidance {guidance.text:g}", f"{alone:.3f}",
             f"{count / cpu['ours']:.2f} slices a second of processor time"],
        ]  # fmt: skip
    return [
        ["slices a second of processor time, ImageInferer alone", f"{count / cpu['bare']:.2f}", ""],
        ["the same, VolumeInferer with recipe, labels and writing", f"{count / cpu['ours']:.2f}", ""],
        ["share of the recipe, reading and cutting, in the time", f"{cpu['recipe'] / cpu['bare']:.3f}",
         "0.15 at most"],
        ["**ratio of ImageInferer and recipe to VolumeInferer, processor time**",
         f"**{(cpu['bare'] + cpu['recipe']) / cpu['ours']:.3f}**", "0.90 or more"],
        ["ratio of ImageInferer alone to VolumeInferer, processor time", f"{cpu['bare'] / cpu['ours']:.3f}",
         f"wall clock {wall['bare'] / wall['ours']:.3f}"],
    ]  # fmt: skip


class Grid:
    """Stands for a model: gives what it gets at 64 x 64, so that only our own memory counts."""

    def __call__(self, batch: Any, network: Any) -> list[Tensor]:
        pictures = [prompt[0].as_subclass(Tensor) for prompt in batch]
        return [torch.nn.functional.interpolate(one[None], (64, 64))[0] for one in pictures]


def resident(field: str) -> float:
    """MiB of this process: VmRSS now, VmHWM at most."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(field))
    return int(line.split()[1]) / 1024


def peak(path: str, model: str) -> float:
    """MiB above the loaded model that a pass over the file takes; in a process of its own."""
    torch.set_num_threads(1)
    network, tokenizer = load("unimedvl_nano")
    infer: Any = ImageInferer(tokenizer, steps=1) if model == "nano" else Grid()
    Path("/proc/self/clear_refs").write_text("5")  # the peak so far is forgotten
    before = resident("VmRSS")
    VolumeInferer(infer, framed(), "Segment.", batch=BATCH, output=Labels(LEGENDS["seg-tissue"]))(
        path, network
    )
    return resident("VmHWM") - before


def series(folder: Path, slab: np.ndarray) -> Path:
    """240 DICOM slices of `slab` (512, 512, 40), six times over, 1 mm apart."""
    folder.mkdir()
    header = pydicom.dcmread(str(get_testdata_file("CT_small.dcm", download=False)))
    header.Rows, header.Columns, header.PixelSpacing = *slab.shape[:2], [0.7, 0.7]
    for index in range(240):
        header.SOPInstanceUID = f"1.2.3.{index}"
        header.ImagePositionPatient, header.InstanceNumber = [0.0, 0.0, float(index)], index + 1
        header.PixelData = slab[..., index % 40].T.tobytes()
        header.save_as(folder / f"{index:03d}.dcm")
    return folder


def memory() -> list[list[str]]:
    """Peak resident sizes, each in a process of its own."""
    found = []
    with tempfile.TemporaryDirectory() as folder:
        t1: Any = nibabel.load(brain())
        values = np.asarray(t1.dataobj)
        four = Path(folder) / "four.nii"
        nibabel.save(nibabel.Nifti1Image(np.tile(values, (1, 1, 4)), t1.affine), four)
        wide = Path(folder) / "wide.nii"
        slab = np.random.default_rng(0).integers(0, 2000, (512, 512, 40), dtype=np.int16)
        nibabel.save(nibabel.Nifti1Image(np.tile(slab, (1, 1, 6)), np.diag([0.7, 0.7, 1, 1])), wide)
        scans = series(Path(folder) / "series", slab)
        for name, path, model in [
            ("197x233x189, packed, the nano", brain(), "nano"),
            ("197x233x189, packed", brain(), "none"),
            ("197x233x756", four, "none"),
            ("512x512x240, int16", wide, "none"),
            ("512x512x240, a DICOM series", scans, "none"),
        ]:
            code = f"import volume; print('PEAK', volume.peak({str(path)!r}, {model!r}))"
            done = subprocess.run(
                [sys.executable, "-c", code],
                capture_output=True,
                text=True,
                cwd=Path(__file__).parent,
                check=True,
            )
            mib = float(done.stdout.split("PEAK")[1])
            found.append([f"peak above the model, {name}", f"{mib:.0f} MiB", "1024 MiB"])
    return found


def slab(folder: str) -> Path:
    """Every second slice of the template, from the orbits to the vertex, as a file."""
    t1: Any = nibabel.load(brain())
    some = nibabel.Nifti1Image(np.asarray(t1.dataobj)[:, :, SLAB], t1.affine @ np.diag([1, 1, 2, 1]))
    nibabel.save(some, Path(folder) / "slab.nii")
    return Path(folder) / "slab.nii"


def through_plane() -> list[list[str]]:
    """SSIM of sections across the slices, drawn alone and together."""
    network, tokenizer = load("unimedvl_nano")
    gm = np.asarray(nibabel.load(brain("gm")).dataobj, dtype=np.float32)  # type: ignore[attr-defined]
    truth = torch.from_numpy(gm[:, :, SLAB] / gm.max())
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        path = slab(folder)
        for name, infer in [
            ("slice by slice", ImageInferer(tokenizer, steps=STEPS)),
            ("in groups of 3, overlap 1", GroupInferer(tokenizer, count=3, overlap=1, steps=STEPS)),
            ("in groups of 2, overlap 1", GroupInferer(tokenizer, count=2, overlap=1, steps=STEPS)),
        ]:
            made = VolumeInferer(infer, framed(), INSTRUCTIONS["t1-to-gm"], output=Grey("one"))(path, network)
            drawn = made.as_subclass(Tensor)[0]
            scores = []
            for axis in (0, 1):  # sagittal and coronal sections, the middle 60 %
                count = drawn.shape[axis]
                inner = torch.arange(count // 5, count - count // 5, 4)
                pair = [x.index_select(axis, inner).movedim(axis, 0)[:, None] for x in (drawn, truth)]
                scores.append(float(ssim(*pair).mean()))
            rough = float(drawn.diff(dim=2).abs().mean() / truth.diff(dim=2).abs().mean())
            in_plane = float(ssim(drawn.movedim(2, 0)[:, None], truth.movedim(2, 0)[:, None]).mean())
            rows.append(
                [
                    f"through-plane SSIM of T1 to grey matter, {name}",
                    f"sagittal {scores[0]:.3f}, coronal {scores[1]:.3f}",
                    f"in plane {in_plane:.3f}; steps between slices {rough:.2f} of the truth's",
                ]
            )
    return rows


def main() -> None:
    """Everything, and RESULTS.md."""
    options = arguments(__doc__ or "")
    load = load_average()
    cells = [["what", "value", "limit, or beside it"]]
    cells += memory() + speed(options.rounds or 1, brain())
    with tempfile.TemporaryDirectory() as folder:
        cells += speed(options.rounds or 1, slab(folder), Guidance(text=2.0))
    cells += through_plane()
    report(
        (__doc__ or "").split("\n\n", 1)[1].strip() if "\n\n" in (__doc__ or "") else "", cells, options, load
    )


if __name__ == "__main__":
    main()
