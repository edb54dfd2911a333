# SPDX-License-Identifier: Apache-2.0
"""`unimedvl label-app DIR`: the folder of a MONAI Label app."""

from __future__ import annotations

import argparse

from monai_unimedvl.cli.command import Result
from monai_unimedvl.label.folder import write_app


def label_app(options: argparse.Namespace) -> Result:
    """Write the app, and say how it is started."""
    folder = write_app(
        options.folder, model=options.model, modality=options.modality or "",
        question=options.question or "", labels=options.labels or "",
    )  # fmt: skip
    start = f"python -m monai_unimedvl.label --app {folder} --studies FOLDER"
    lines = [f"wrote {folder} (MONAI Label app on {options.model})", f"start it with: {start}"]
    return lines, {"outputs": [str(folder)], "start": start}
