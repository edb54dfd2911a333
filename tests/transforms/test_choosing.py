# SPDX-License-Identifier: Apache-2.0
"""What a file says about itself before anybody names its modality."""

from __future__ import annotations

import nibabel
import numpy as np
import pytest
from PIL import Image

from monai_unimedvl.transforms.choosing import modality_of


def test_a_folder_of_pictures_may_hold_notes_too(tmp_path):
    (tmp_path / "a.txt").write_text("stained in May")
    Image.effect_noise((32, 32), 50).save(tmp_path / "b.png")
    assert modality_of(tmp_path)[0] == "histopathology"


def test_a_volume_of_several_times_is_asked_for_its_modality_and_not_for_its_time(tmp_path):
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 4, 2), np.float32), np.eye(4)), tmp_path / "bold.nii")
    with pytest.raises(ValueError, match="bold.nii does not say how to read its values.*--modality"):
        modality_of(tmp_path / "bold.nii")
