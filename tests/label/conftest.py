# SPDX-License-Identifier: Apache-2.0
"""MONAI Label servers with a data store of volumes and a picture."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pytest
from label_server import NAME, Server

from monai_unimedvl.label.folder import write_app


@pytest.fixture(scope="session")
def installed() -> None:
    """MONAI Label, which has an environment of its own."""
    pytest.importorskip("monailabel", reason="MONAI Label is not installed here: `make label` does that")


@pytest.fixture(scope="session")
def sample(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The brain that comes with the package, 4 mm, eight of its slices."""
    from monai_unimedvl import bundle

    whole = nibabel.load(bundle.find("unimedvl_volume") / "samples/volume/icbm152_t1_4mm.nii.gz")
    path = tmp_path_factory.mktemp("sample") / "brain.nii.gz"
    nibabel.save(whole.slicer[:, :, 18:26], path)
    return path


@pytest.fixture(scope="session")
def studies(tmp_path_factory: pytest.TempPathFactory, sample: Path) -> Path:
    """Four volumes, one of them oblique and left-handed, and a picture."""
    from monai_unimedvl import bundle

    folder = tmp_path_factory.mktemp("studies")
    brain = nibabel.load(sample)
    values, affine = np.asarray(brain.dataobj), brain.affine
    for number in range(2):
        mirrored = values[:: 1 - 2 * number]
        nibabel.save(nibabel.Nifti1Image(mirrored, affine), folder / f"brain{number}.nii.gz")
    shutil.copy(sample, folder / f"{NAME}.nii.gz")
    turn = np.deg2rad(12.0)
    oblique = np.eye(4)
    oblique[:3, :3] = [[np.cos(turn), -np.sin(turn), 0], [np.sin(turn), np.cos(turn), 0], [0, 0, 1]]
    oblique = oblique @ affine @ np.diag([-1.0, 1.0, 1.0, 1.0])
    nibabel.save(nibabel.Nifti1Image(values[::-1].astype(np.int16) * 7, oblique), folder / "oblique.nii.gz")
    shutil.copy(bundle.find("unimedvl_nano") / "samples/brain/icbm152_axial.png", folder / "picture.png")
    return folder


@pytest.fixture(scope="session")
def served(installed: None) -> Iterator[Callable[..., Server]]:
    """Servers that are stopped in the end."""
    servers: list[Server] = []

    def start(app: Path, studies: str | Path, *options: str, **more: Any) -> Server:
        server = Server(app, str(studies), options, **more)
        servers.append(server)
        server.start()
        return server

    yield start
    for server in servers:
        server.stop()


@pytest.fixture(scope="session")
def server(served: Any, studies: Path, tmp_path_factory: pytest.TempPathFactory) -> Server:
    """The app on the nano model, for all tests that do not stop it."""
    labels = "grey matter=3, white matter=5, CSF=700"
    app = write_app(tmp_path_factory.mktemp("app") / "app", modality="mri", labels=labels)
    return served(app, studies)
