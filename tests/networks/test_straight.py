# SPDX-License-Identifier: Apache-2.0
"""What exporters follow draws what TensorPath draws: every prediction, guidance, size and batch."""

from __future__ import annotations

import pytest
import torch
from tiny import MARKS, numbers, tiny_network
from torch.testing import assert_close

from monai_unimedvl.networks.straight import Plan, draw
from monai_unimedvl.networks.tensor_path import TensorPath

IMAGE = {"prediction": "image", "tones": 4, "details": 3, "strokes": 3, "latent_patch": 1}


@pytest.mark.parametrize(
    "options", [{}, {"guidance": 2.0}, {"reads": False}, {"guidance": 2.0, "reads": False}]
)
@pytest.mark.parametrize("changes", [{}, IMAGE], ids=["velocity", "image"])
@pytest.mark.parametrize("size", [(8, 8), (9, 13)], ids=["as the canvas", "resized"])
def test_it_draws_what_the_tensor_path_draws(options: dict, changes: dict, size: tuple[int, int]) -> None:
    path = TensorPath(tiny_network(**changes).eval(), [1, 2, 3], MARKS, steps=3, **options)
    images = numbers(2, 3, *size).sigmoid()
    with torch.no_grad():
        drawn = draw(path, images, Plan.of(path, size))
        assert_close(drawn, path(images), atol=1e-7, rtol=0)  # a base goes through float32


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"guidance": 2.0}])
def test_torch_export_takes_the_tensor_path_with_a_free_batch(options: dict) -> None:
    path = TensorPath(tiny_network(**IMAGE).eval(), [1, 2, 3], MARKS, steps=2, **options)
    images = numbers(3, 3, 9, 13).sigmoid()
    shapes = {"image": {0: torch.export.Dim("N", min=1, max=64)}}
    exported = torch.export.export(path, (images[:2],), dynamic_shapes=shapes).module()
    for count in (1, 3):
        assert_close(exported(images[:count]), path(images[:count]), atol=1e-7, rtol=0)
