# SPDX-License-Identifier: Apache-2.0
"""Old monai-generative checkpoints in core's classes: numbers of the real package, and what is refused."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import old_networks
import pytest
import torch
from monai.bundle import ConfigParser
from monai.utils import optional_import
from old_networks import CASES, GOLDEN, filled, outputs
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.testing import assert_close

from monai_unimedvl.compat import core_config, from_generative
from monai_unimedvl.compat.generative import CLASSES

OLD = json.loads(GOLDEN.read_text("utf8"))
REAL = optional_import("generative")[1]
NAMES = list(CASES)


def old_weights(name: str) -> dict[str, Tensor]:
    return filled(OLD[name]["shapes"])


def written(folder: Path, content: Any, file: str = "old.pt") -> Path:
    torch.save(content, folder / file)
    return folder / file


@pytest.mark.parametrize("name", NAMES)
def test_the_outputs_are_those_of_the_old_package(tmp_path: Path, name: str) -> None:
    kind, config = CASES[name]
    network = from_generative(written(tmp_path, old_weights(name)), kind, **config)
    assert type(network) is CLASSES[kind] and not network.training
    numbers = torch.cat(outputs(network, kind, config))[::7]
    assert_close(numbers, torch.tensor(OLD[name]["numbers"]), atol=5e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.skipif(not REAL, reason="compares with monai-generative itself: pip install .[generative]")
@pytest.mark.parametrize("name", NAMES)
def test_the_real_package_gives_the_same_in_float64_and_the_golden_numbers(tmp_path: Path, name: str) -> None:
    case = old_networks.old_case(name)
    assert case["shapes"] == OLD[name]["shapes"]
    assert case["numbers"] == pytest.approx(OLD[name]["numbers"], abs=5e-5)
    from generative.networks import nets

    kind, config = CASES[name]
    old = getattr(nets, kind)(**config).eval()
    old.load_state_dict(old_weights(name))
    new = from_generative(written(tmp_path, old.state_dict()), kind, **config)
    # core raises the scores to float32 and mixes: where that is asked for, float32 is all it can do
    dtype, exact = (torch.float32, 5e-5) if config.get("upcast_attention") else (torch.float64, 1e-10)
    inputs = {"kind": kind, "config": config, "dtype": dtype}
    for ours, theirs in zip(outputs(new.to(dtype), **inputs), outputs(old.to(dtype), **inputs), strict=True):
        assert_close(ours, theirs, atol=exact, rtol=0)


def test_core_alone_would_change_what_attention_gives() -> None:
    """Why the idle layer is left behind: should core mend it, this says so."""
    kind, config = CASES["unet"]
    arguments = core_config(kind, **config) | {"include_fc": True}
    network: nn.Module = CLASSES[kind](**arguments).eval()
    network.load_old_state_dict(old_weights("unet"))
    numbers = torch.cat(outputs(network, kind, config))[::7]
    assert (numbers - torch.tensor(OLD["unet"]["numbers"])).abs().max() > 0.1


@pytest.mark.parametrize("before", ["module.", "stage.autoencoder."])
def test_what_a_training_loop_puts_around_the_weights_comes_off(tmp_path: Path, before: str) -> None:
    kind, config = CASES["autoencoder"]
    named = {f"{before}{key}": x for key, x in old_weights("autoencoder").items()}
    content = {"epoch": 3, "state_dict": {**named, "discriminator.final.weight": torch.zeros(2)}}
    network = from_generative(written(tmp_path, content), kind, **config)
    plain = from_generative(written(tmp_path, old_weights("autoencoder")), kind, **config)
    for key, x in plain.state_dict().items():
        assert torch.equal(network.state_dict()[key], x)


def test_safetensors_and_half_precision_are_read(tmp_path: Path) -> None:
    kind, config = CASES["unet"]
    halves = {key: x.half() for key, x in old_weights("unet").items()}
    save_file(halves, tmp_path / "old.safetensors")
    network = from_generative(tmp_path / "old.safetensors", kind, **config)
    assert network.conv_in.conv.weight.dtype == torch.float32
    assert torch.equal(network.conv_in.conv.weight, halves["conv_in.conv.weight"].float())


def test_the_network_of_an_old_bundle_is_taken_as_it_is() -> None:
    kind, config = CASES["unet"]
    section = {"_target_": f"generative.networks.nets.{kind}", **config, "spatial_dims": "@dims"}
    bundle = ConfigParser({"dims": 2, "network_def": section})
    resolved = bundle.get_parsed_content("network_def", instantiate=False).get_config()
    assert core_config(kind, **resolved) == core_config(kind, **config)
    assert core_config(kind, **config)["channels"] == [4, 8]


def test_saved_anew_it_is_a_plain_network_of_core(tmp_path: Path) -> None:
    kind, config = CASES["controlnet"]
    network = from_generative(written(tmp_path, old_weights("controlnet")), kind, **config)
    again = CLASSES[kind](**core_config(kind, **config)).eval()
    again.load_state_dict(network.state_dict())
    for ours, theirs in zip(outputs(again, kind, config), outputs(network, kind, config), strict=True):
        assert torch.equal(ours, theirs)


class Trap:
    """Would run if it were unpickled."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return exec, ("raise SystemExit('it ran')",)


def test_a_pickle_is_refused_and_nothing_of_it_runs(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"old.pt holds a pickle that asks for .*exec.*: nothing of it was run"
    ):
        from_generative(
            written(tmp_path, {"state_dict": Trap()}), "ControlNet", spatial_dims=2, in_channels=1
        )


U = "DiffusionModelUNet"
UNET, AUTOENCODER = CASES["unet"][1], CASES["autoencoder"][1]


@pytest.mark.parametrize(
    "kind, changes, words",
    [
        ("UNet", {}, "kind='UNet' is not known: give one of AutoencoderKL, DiffusionModelUNet, ControlNet."),
        (U, {"width": 3}, "DiffusionModelUNet has no argument 'width': it has spatial_dims"),
        (U, {"in_channels": "@n"}, "in_channels='@n' is text, expected a value: resolve"),
        (U, {"include_fc": True}, "include_fc is decided by the old layout: leave it out."),
        (U, {"_target_": "a.ControlNet"}, "_target_ names ControlNet, but kind='Diffusion"),
        (U, {"num_channels": [8, 8]}, "of shape (4, 2, 3, 3), the arguments ask for (8, 2"),
        (U, {"num_res_blocks": 2}, "old.pt lacks 'down_blocks.0.resnets.1.norm1.weight'"),
        (U, {"attention_levels": [False, False]}, "weights beyond the arguments: give"),
        (U, {"prefix": "ema."}, "old.pt has no weight that begins with 'ema.': its first is"),
    ],
)
def test_what_does_not_fit_is_said_with_what_to_do(
    tmp_path: Path, kind: Any, changes: dict[str, Any], words: str
) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        from_generative(written(tmp_path, old_weights("unet")), kind, **{**UNET, **changes})


@pytest.mark.parametrize(
    "content, words",
    [
        ({"epoch": 3, "lr": 0.1}, "old.pt holds epoch, lr, expected tensors by name, or such under"),
        (torch.zeros(2), "old.pt holds Tensor, expected tensors by name"),
        (old_weights("unet"), "as every AutoencoderKL has, but 'conv_in.conv.bias' and others: it looks"),
        ({"a.weight": torch.zeros(1)}, "but 'a.weight' and others: take another file."),
        (
            {f"{x}.quant_conv_mu.conv.weight": torch.zeros(1) for x in ("ema", "raw")},
            "old.pt holds 2 networks of AutoencoderKL: give prefix, one of ['ema.', 'raw.'].",
        ),
    ],
    ids=["no weights", "a tensor", "another kind", "another network", "two networks"],
)
def test_what_a_file_holds_instead_is_said(tmp_path: Path, content: Any, words: str) -> None:
    with pytest.raises(ValueError, match=re.escape(words)):
        from_generative(written(tmp_path, content), "AutoencoderKL", **AUTOENCODER)


def test_a_missing_argument_or_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="ControlNet needs spatial_dims, in_channels: give the arguments"):
        core_config("ControlNet")
    with pytest.raises(ValueError, match="gone.pt cannot be read .No such file or directory.: check"):
        from_generative(tmp_path / "gone.pt", "AutoencoderKL", **AUTOENCODER)


@pytest.mark.parametrize("name", ["autoencoder", "autoencoder, transposed", "unet", "unet, conditioned"])
def test_weights_that_are_cores_already_are_sent_to_core(tmp_path: Path, name: str) -> None:
    kind, config = CASES[name]
    network = CLASSES[kind](**core_config(kind, **config))
    with pytest.raises(ValueError, match=f"a name of MONAI core: build monai.networks.nets.{kind} and call"):
        from_generative(written(tmp_path, network.state_dict()), kind, **config)
