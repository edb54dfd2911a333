# SPDX-License-Identifier: Apache-2.0
"""What the Label app's tasks put before the model is, to the bit, what the recipe gives everybody."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from monai_unimedvl import recipe
from monai_unimedvl.inferers import ImageInferer, TextInferer

pytestmark = pytest.mark.label


@pytest.fixture(scope="module")
def tasks(installed: None) -> dict[str, Any]:
    """The tasks in this process."""
    from monai_unimedvl.label.guard import protect

    protect()
    from monai_unimedvl.label.answering import AnswerTask
    from monai_unimedvl.label.drawing import SegmentTask, TranslateTask
    from monai_unimedvl.label.served import Served

    served = Served("nowhere", "unimedvl_nano")
    return {
        "answer": AnswerTask(served, "mri"),
        "segment": SegmentTask(served, "Segment the tumour.", {"tumour": (255, 60, 60)}, "mri"),
        "translate": TranslateTask(served, "mri"),
    }


@pytest.mark.parametrize("image", ["brain0.nii.gz", "oblique.nii.gz", "picture.png"])
def test_every_task_shows_the_model_the_recipes_picture(
    tasks: dict[str, Any], studies: Path, image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, seen = studies / image, []

    def spy(kind: type) -> None:
        before = kind.__call__

        def call(self: Any, batch: Any, network: Any, *args: Any, **options: Any) -> Any:
            seen.extend(part for prompt in batch for part in prompt if isinstance(part, torch.Tensor))
            return before(self, batch, network, *args, **options)

        monkeypatch.setattr(kind, "__call__", call)

    spy(TextInferer)
    spy(ImageInferer)
    flat = image.endswith(".png")
    modality = "histopathology" if flat else "mri"
    settings = {} if flat else {"plane": "coronal", "policy": "all"}
    every = recipe(modality, field="square", **settings)(path)
    picture = every[0] if flat else every[17]
    wanted = {"image": str(path), "steps": 1, **({} if flat else {"plane": "coronal", "slice": "17"})}
    for name, task in tasks.items():
        seen.clear()
        file, told = task(wanted)
        if file is not None:
            Path(file).unlink()
        assert len(seen) == 1 and torch.equal(torch.as_tensor(seen[0]), picture.as_tensor()), name


def test_training_reads_all_images_by_one_modality(tasks: dict[str, Any], studies: Path) -> None:
    from monai_unimedvl.label.learning import FineTune
    from monai_unimedvl.label.lessons import Gathered

    def of(task: FineTune, *names: str, modality: str = "auto") -> str:
        return task._modality({"modality": modality}, Gathered([{"image": studies / name} for name in names]))

    mri = FineTune(tasks["answer"].served, modality="mri")
    assert of(mri, "brain0.nii.gz", "oblique.nii.gz") == "mri" and of(mri, "picture.png") == "histopathology"
    assert of(mri, "brain0.nii.gz", "picture.png", modality="mri") == "mri"
    with pytest.raises(
        ValueError, match="of several modalities .histopathology, mri., expected one: name it"
    ):
        of(mri, "brain0.nii.gz", "picture.png")
    with pytest.raises(ValueError, match="does not say how to read its values"):
        of(FineTune(tasks["answer"].served), "brain0.nii.gz")
