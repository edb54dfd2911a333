# SPDX-License-Identifier: Apache-2.0
"""The vision encoder: golden features, and images that do not see each other."""

from __future__ import annotations

import torch
from golden_support import Golden
from tiny import MARKS, view
from torch import nn
from torch.testing import assert_close

from monai_unimedvl.networks.unimedvl import UniMedVL
from monai_unimedvl.sequence import pack


@torch.no_grad()
def test_golden_vit_of_two_images_in_one_pack(gold: Golden) -> None:
    seq, vision = pack([[gold.view("vit.img0"), gold.view("vit.img1")]], gold.marks), gold.network.vision
    assert list(seq.view_lengths) == gold["vit.seqlens"].tolist()
    gold.check("vit.position_ids", seq.view_cells @ torch.tensor([vision.grid_side, 1]))
    seen = {}
    hook = vision.layers[0].register_forward_hook(lambda _, x, y: seen.update(embeddings=x[0], layer0=y))
    features = vision(seq.patches, seq.view_cells, seq.view_lengths)
    hook.remove()
    gold.check("vit.embeddings", seen["embeddings"])
    gold.check("vit.layer0", seen["layer0"])
    gold.check("vit.features", features)
    gold.check("vit.connector", gold.network.connector(features))
    gold.check("vit.tokens", gold.network.views(seq))


def test_golden_vit_uses_one_layer_less_than_its_file_says(gold: Golden) -> None:
    assert len(gold.network.vision.layers) == gold.cases["vit"]["num_layers_used"]


def test_images_packed_together_give_the_features_of_each_alone(tiny: UniMedVL) -> None:
    images = [
        view(2, 3, seed=1),
        view(2, 3, seed=2),
        view(1, 2, seed=3),
        view(3, 2, seed=4),
        view(4, 4, seed=5),
    ]
    together = tiny.views(pack([images[:3], images[3:]], MARKS)).split([6, 6, 2, 6, 16])
    for image, tokens in zip(images, together, strict=True):
        assert_close(tokens, tiny.views(pack([[image]], MARKS)), atol=1e-12, rtol=0)


def test_patches_know_where_they_lie(tiny: UniMedVL) -> None:
    patches = view(1, 1).patches.expand(4, -1)
    lying, standing = (
        torch.tensor(cells) for cells in ([[0, 0], [0, 1], [0, 2], [0, 3]], [[0, 0], [1, 0], [2, 0], [3, 0]])
    )
    assert not torch.allclose(tiny.vision(patches, lying, (4,)), tiny.vision(patches, standing, (4,)))


def test_the_encoder_is_that_of_torch(tiny: UniMedVL) -> None:
    ours = tiny.vision.layers[0]
    twin = nn.TransformerEncoderLayer(
        8,
        2,
        12,
        dropout=0,
        activation=nn.GELU("tanh"),
        norm_first=True,
        layer_norm_eps=1e-6,
        dtype=torch.float64,
    )
    names = {"linear1": ours.fc1, "linear2": ours.fc2, "norm1": ours.norm1, "norm2": ours.norm2}
    weights = {f"{name}.{w}": getattr(part, w) for name, part in names.items() for w in ("weight", "bias")}
    for w in ("weight", "bias"):
        weights[f"self_attn.in_proj_{w}"] = torch.cat([getattr(part, w) for part in (ours.q, ours.k, ours.v)])
        weights[f"self_attn.out_proj.{w}"] = getattr(ours.out, w)
    twin.load_state_dict(weights)
    x = torch.randn(6, 8, dtype=torch.float64)
    assert_close(ours(x, (6,)), twin(x), atol=1e-12, rtol=0)
