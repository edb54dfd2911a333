# SPDX-License-Identifier: Apache-2.0
"""Encoders with weights of a few numbers in the layouts of the real ones; none is fetched."""

from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from monai_unimedvl.evaluation import encoders
from monai_unimedvl.evaluation.encoders import Encoder, ImageText, image_text_scores, of_module


@pytest.fixture
def images():
    return torch.rand(5, 3, 20, 30)


def test_any_module_is_an_encoder_and_names_its_weights(images):
    network = nn.Sequential(nn.Conv2d(3, 4, 5), nn.AdaptiveAvgPool2d(1))
    encoder = of_module(network, "four filters", side=12, batch=2)
    found = encoder(images)
    assert found.shape == (5, 4) and found.dtype == torch.float64 and len(encoder.weights) == 64
    assert torch.allclose(found[3:4], encoder(images[3:4]))  # alone as in a batch
    network[0].bias.data += 1
    assert of_module(network, "four filters").weights != encoder.weights


def test_images_are_resized_by_pil_s_bicubic(images):
    numpy, image = pytest.importorskip("numpy"), pytest.importorskip("PIL.Image")
    prepared = Encoder("e", lambda x: x, side=16).prepare(images)
    for n in range(2):
        planes = [
            numpy.asarray(image.fromarray(plane.numpy(), mode="F").resize((16, 16), image.Resampling.BICUBIC))
            for plane in images[n]
        ]
        expected = torch.from_numpy(numpy.stack(planes)).clamp(0, 1)
        assert torch.allclose(prepared[n], expected, atol=1e-4)


def test_the_middle_is_cut_out_where_a_model_wants_it(images):
    images[..., :5], images[..., -5:] = 0, 1
    prepared = Encoder("e", lambda x: x, side=20, crop=True).prepare(images)
    assert torch.equal(prepared, images[..., 5:25])
    grey = Encoder("e", lambda x: x, mean=(0.5,), std=(0.5 / 1024,), channels=1).prepare(images)
    assert grey.shape == (5, 1, 20, 30) and float(grey.min()) == -1024 and float(grey.max()) == 1024


def test_the_inception_network_sees_8_bit_pixels_around_zero(images, tmp_path):
    class Layers(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.flatten(2).mean(2)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layers = Layers()

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.layers(x)

    path = tmp_path / "inception.pt"
    torch.jit.script(Net()).save(str(path))
    encoder = encoders.inception(path)
    assert encoder(torch.ones(1, 3, 8, 8))[0].tolist() == pytest.approx([127 / 128] * 3)
    assert encoder(torch.zeros(1, 3, 8, 8))[0].tolist() == pytest.approx([-1.0] * 3)
    assert "clean-fid" in encoder.name and len(encoder.weights) == 64


def test_a_folder_of_rad_dino_s_layout_gives_its_class_token(images, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.Dinov2Config(
        hidden_size=8, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path / "dino")
    encoder = encoders.rad_dino(tmp_path / "dino")
    expected = network(pixel_values=encoder.prepare(images)).pooler_output
    assert torch.allclose(encoder(images), expected.double(), atol=1e-5)
    assert encoder.name == "RadDINO dino"
    with pytest.raises(ValueError, match="dino holds a model of type dinov2, expected clip: name its folder"):
        encoders.clip(tmp_path / "dino")  # transformers leaves weights that it misses at random


def test_a_folder_of_clip_s_layout_scores_images_beside_texts(images, tmp_path):
    transformers = pytest.importorskip("transformers")
    tokens = pytest.importorskip("tokenizers")
    words = ["[UNK]", "[PAD]", "[EOS]", "axial", "coronal", "mri"]
    plain = tokens.Tokenizer(tokens.models.WordLevel({word: n for n, word in enumerate(words)}, "[UNK]"))
    plain.pre_tokenizer = tokens.pre_tokenizers.Whitespace()
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=plain, unk_token="[UNK]", pad_token="[PAD]", eos_token="[EOS]"
    )
    tower = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config=tower | {"vocab_size": 6, "max_position_embeddings": 7, "eos_token_id": 2},
        vision_config=tower | {"image_size": 16, "patch_size": 8}, projection_dim=4,
    )  # fmt: skip
    transformers.CLIPModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="holds no tokenizer, expected tokenizer.json or vocab.json: copy"):
        encoders.clip(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pair = encoders.clip(tmp_path)
    scores = image_text_scores(pair, images, ["axial mri"] * 4 + ["coronal mri " * 20])
    assert scores["cosine"].shape == (5,) and scores["cosine"].abs().max() <= 1


def test_the_image_text_score_is_given_raw_and_rescaled():
    pair = ImageText("e", lambda x: x.flatten(1), lambda texts: torch.tensor([[1.0, 0, 0], [0, 2.0, 0]]))
    images = torch.tensor([[3.0, 0, 0], [0, -1.0, 0]]).view(2, 3, 1, 1)
    found = image_text_scores(pair, images, ["a", "b"])
    assert found["cosine"].tolist() == [1.0, -1.0] and found["(1 + cosine) / 2"].tolist() == [1.0, 0.0]
    with pytest.raises(ValueError, match="2 images came with 1 texts"):
        image_text_scores(pair, images, ["a"])


def test_torchxrayvision_sees_grey_hounsfield_like_values(images, tmp_path, monkeypatch):
    class DenseNet(nn.Module):
        def __init__(self, weights, cache_dir):
            super().__init__()
            assert weights == encoders.XRAY and cache_dir == str(tmp_path)

        def features2(self, x):
            return torch.stack([x.amin((1, 2, 3)), x.amax((1, 2, 3))], dim=1)

    package = SimpleNamespace(models=SimpleNamespace(DenseNet=DenseNet))
    monkeypatch.setitem(sys.modules, "torchxrayvision", package)
    monkeypatch.setattr(encoders, "optional_import", lambda name: (package, True))
    with pytest.raises(ValueError, match="holds no .pt file: put densenet121-res224-all there"):
        encoders.xray(tmp_path)
    (tmp_path / "weights.pt").touch()
    found = encoders.xray(tmp_path)(torch.cat([torch.zeros(1, 3, 9, 9), torch.ones(1, 3, 9, 9)]))
    assert torch.allclose(found, torch.tensor([[-1024.0], [1024.0]]).double().expand(2, 2), atol=1e-2)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda folder: encoders.inception(folder / "x.pt"), "nothing is downloaded, so copy it there"),
        (lambda folder: encoders.rad_dino(folder / "x"), "nothing is downloaded unasked"),
        (lambda folder: encoders.clip(folder / "x"), "nothing is downloaded unasked"),
    ],
)
def test_weights_that_are_not_there_are_told_and_not_fetched(make, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        make(tmp_path)


def test_packages_that_are_not_there_are_told(monkeypatch, tmp_path):
    monkeypatch.setattr(encoders, "optional_import", lambda name: (None, False))
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        encoders.biomedclip(tmp_path)
    with pytest.raises(ValueError, match="pip install torchxrayvision"):
        encoders.xray(tmp_path)
    monkeypatch.setattr(encoders, "optional_import", lambda name: (SimpleNamespace(), True))
    with pytest.raises(ValueError, match="copy microsoft/BiomedCLIP.* to one, or say download=True"):
        encoders.biomedclip()


def test_images_that_cannot_be_encoded_are_told(images):
    encoder = Encoder("e", lambda x: x)
    with pytest.raises(ValueError, match=r"e got images of shape \(5, 20, 30\), expected \(N, 3, H, W\)"):
        encoder(images[:, 0])
    images[3, 0, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="Image 3 has pixels that are no numbers"):
        Encoder("e", lambda x: x, batch=2)(images)
