# SPDX-License-Identifier: Apache-2.0
"""The folder of an app, written whole: what MONAI Label starts, its settings, and what it needs."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from monai_unimedvl import bundle
from monai_unimedvl.atomic import new_folder
from monai_unimedvl.label.lessons import labels_in
from monai_unimedvl.transforms import modalities

HERE = Path(__file__).resolve().parent
REQUIREMENTS = ("requirements.txt", "no_deps.txt")
MAIN = '''# SPDX-License-Identifier: Apache-2.0
"""The app that MONAI Label runs; it has to find the class in this file."""

from monai_unimedvl.label.guard import protect

protect()

from monai_unimedvl.label.app import UniMedVLApp  # noqa: E402

__all__ = ["UniMedVLApp"]
'''
README = """# UniMedVL in MONAI Label

    pip install torch==2.13.0
    pip install "monai-unimedvl[dicom,delivery,train]" -r requirements.txt
    pip install --no-deps -r no_deps.txt
    python -m monai_unimedvl.label --app . --studies FOLDER_OF_SCANS

Settings: app.json (model, modality, question, labels), or `--conf NAME VALUE`. Weights of fine-tuning lie in
model/tuned, and model/serving.json says which are served; remove that file to go back to the first ones.
What the model makes is synthetic and marked so. Research software, not for diagnosis.
"""


def write_app(
    folder: str | Path, *, model: str = bundle.DEFAULT, modality: str = "", question: str = "",
    labels: str = "",
) -> Path:  # fmt: skip
    """Write an app into a new folder; returns it.

    Args:
        model: bundle or folder of weights that it serves.
        modality: of images that do not say, such as NIfTI.
        question: the usual one.
        labels: names of your own masks, "liver=1, spleen=2".

    Raises:
        ValueError: the folder holds something already; no such model or modality; labels that are none.
    """
    bundle.find(model)
    if modality and modality not in modalities() and not Path(modality).is_file():
        raise ValueError(f"modality is {modality!r}, expected one of {', '.join(modalities())}: change it.")
    labels_in(labels)
    named = str(Path(model).resolve()) if model not in bundle.available() else model
    settings = {"model": named, "modality": modality, "question": question, "labels": labels}
    with new_folder(folder) as aside:
        (aside / "main.py").write_text(MAIN, "utf8")
        (aside / "app.json").write_text(json.dumps(settings, indent=2) + "\n", "utf8")
        (aside / "README.md").write_text(README, "utf8")
        for name in REQUIREMENTS:
            shutil.copyfile(HERE / name, aside / name)
        (aside / "model").mkdir()
    return Path(folder)
