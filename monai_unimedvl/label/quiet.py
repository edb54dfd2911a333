# SPDX-License-Identifier: Apache-2.0
"""Logs without patients: MONAI Label writes whole requests, file names and UIDs into its own."""

from __future__ import annotations

import logging
import os

LOUD = (
    "monailabel",  # requests with questions and paths; its data store with UIDs
    "task_train", "task_batch_infer", "task_scoring",  # what their processes print; ours come through below
    "httpx", "dicomweb_client", "pydicom", "pynetdicom", "matplotlib", "urllib3",
)  # fmt: skip
OURS = "monai_unimedvl"
SHOWN = ("task_train", "task_batch_infer", "task_scoring")
VARIABLE = "UNIMEDVL_LABEL_VERBOSE"  # "1" lets MONAI Label speak again


def hush() -> None:
    """Keep of MONAI Label's loggers only warnings, and of ours the progress."""
    logging.getLogger(OURS).setLevel(logging.INFO)
    if os.environ.get(VARIABLE) == "1":
        return
    for name in LOUD:
        logging.getLogger(name).setLevel(logging.INFO if name in SHOWN else logging.WARNING)
    for name in ("ignite.engine.engine.SupervisedTrainer", "monai.engines"):
        logging.getLogger(name).setLevel(logging.INFO)
