# SPDX-License-Identifier: Apache-2.0
"""Names and config files of BAGEL / UniMedVL folders, there and back."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from monai_unimedvl import weights
from monai_unimedvl.networks.unimedvl import released
from monai_unimedvl.weights import upstream


@pytest.fixture
def folder(golden: Path, tmp_path: Path) -> Path:
    """A writable copy of the golden folder's weights and configs."""
    for file in golden.iterdir():
        if not file.name.startswith("cases"):
            shutil.copyfile(file, tmp_path / file.name)
    return tmp_path


def change(folder: Path, name: str, **fields) -> None:
    content = json.loads((folder / name).read_text())
    (folder / name).write_text(json.dumps({**content, **fields}))


def same(left: dict[str, Tensor], right: dict[str, Tensor]) -> None:
    assert left.keys() == right.keys()
    assert not [name for name in left if not torch.equal(left[name], right[name])]


def test_golden_folder_gives_a_complete_network(golden: Path) -> None:
    network, tokenizer = weights.load(golden)
    assert tokenizer is None and not network.training
    assert not [name for name, x in network.state_dict().items() if x.is_meta]
    assert network.config["vision"]["num_layers"] == 2  # vit_config.json says 3, and one is dropped
    assert (network.latent_side, network.vision.grid_side) == (8, 10)
    assert not any(p.requires_grad for p in network.autoencoder.parameters())


def test_golden_weights_survive_the_round_trip_of_names(golden: Path) -> None:
    main, inner = load_file(golden / "model.safetensors"), load_file(golden / "ae.safetensors")
    same(upstream.to_upstream(upstream.to_ours(main)), main)
    same(upstream.autoencoder_to_upstream(upstream.autoencoder_to_ours(inner)), inner)


def test_golden_folder_saved_in_upstream_layout_holds_the_same_bits(golden: Path, tmp_path: Path) -> None:
    network, _ = weights.load(golden)
    weights.save(network, None, tmp_path, layout="upstream")
    same(load_file(tmp_path / "ema.safetensors"), load_file(golden / "model.safetensors"))
    same(load_file(tmp_path / "ae.safetensors"), load_file(golden / "ae.safetensors"))
    again, _ = weights.load(tmp_path)
    same(again.state_dict(), network.state_dict())


def test_golden_configs_and_headers_give_our_config(golden: Path) -> None:
    config = upstream.read_config(golden)
    network, _ = weights.load(golden)
    assert config.items() <= network.config.items()
    files = upstream.config_to_upstream(config)
    vit = json.loads((golden / "vit_config.json").read_text())
    assert {key: files["vit_config.json"][key] for key in vit} == vit
    assert upstream.config_to_ours(files, {}).items() <= network.config.items()


def test_the_released_config_is_what_an_upstream_folder_without_extras_says() -> None:
    with torch.device("meta"):
        config = released().config
    files = upstream.config_to_upstream(config)
    bare = {name: files[name] for name in ("llm_config.json", "vit_config.json")}
    bare["llm_config.json"]["torch_dtype"] = "bfloat16"  # keys we do not know are ignored
    assert upstream.config_to_ours(bare, {}).items() <= config.items()


def test_every_released_name_has_a_place_on_the_other_side() -> None:
    with torch.device("meta"):
        ours = released().state_dict()
    theirs = upstream.to_upstream(ours)
    assert sum(x.numel() for x in theirs.values()) == 14_607_260_128  # reference.md, section 1
    assert "language_model.model.layers.27.mlp_moe_gen.gate_proj.weight" in theirs
    assert "vit_model.vision_model.encoder.layers.25.self_attn.out_proj.bias" in theirs
    back = upstream.to_ours(theirs)
    assert {name: x.shape for name, x in back.items()} == {
        name: x.shape for name, x in ours.items() if not name.startswith("autoencoder.")
    }


@pytest.mark.parametrize("wrap", ["module.{}", "bagel.{}", "bagel.module.{}"])
def test_golden_weights_load_under_wrappers_names(folder: Path, wrap: str) -> None:
    expected, _ = weights.load(folder)
    main = load_file(folder / "model.safetensors")
    save_file({wrap.format(name): x for name, x in main.items()}, folder / "ema.safetensors")
    (folder / "model.safetensors").unlink()
    same(weights.load(folder)[0].state_dict(), expected.state_dict())


def test_golden_weights_load_with_module_inside_names_and_the_autoencoder_in_the_same_file(
    folder: Path,
) -> None:
    expected, _ = weights.load(folder)
    main = load_file(folder / "model.safetensors")
    main = {name.replace("language_model.", "language_model.module."): x for name, x in main.items()}
    main |= {f"vae_model.{name}": x for name, x in load_file(folder / "ae.safetensors").items()}
    (folder / "ae.safetensors").unlink()
    save_file(main, folder / "model.safetensors")
    same(weights.load(folder)[0].state_dict(), expected.state_dict())


@pytest.mark.parametrize("order", ["convolution", "channels last"])
def test_golden_patch_weights_of_a_convolution_are_read(folder: Path, order: str) -> None:
    expected, _ = weights.load(folder)
    main = load_file(folder / "model.safetensors")
    name = "vit_model.vision_model.embeddings.patch_embedding.weight"
    weight = main[name].unflatten(1, (14, 14, 3))  # row, column, channel
    main[name] = weight.permute(0, 3, 1, 2).contiguous() if order == "convolution" else weight
    save_file(main, folder / "model.safetensors")
    same(weights.load(folder)[0].state_dict(), expected.state_dict())


def test_golden_position_tables_that_are_missing_are_computed(folder: Path) -> None:
    expected, _ = weights.load(folder)
    main = load_file(folder / "model.safetensors")
    tables = {name: main.pop(name) for name in ("vit_pos_embed.pos_embed", "latent_pos_embed.pos_embed")}
    assert len(tables) == 2
    save_file(main, folder / "model.safetensors")
    network, _ = weights.load(folder)
    torch.testing.assert_close(network.latent_table, expected.latent_table, atol=1e-6, rtol=0)
    torch.testing.assert_close(network.view_table, expected.view_table, atol=1e-6, rtol=0)


def test_golden_depths_come_from_the_weights_not_from_the_files(folder: Path) -> None:
    change(folder, "vit_config.json", num_hidden_layers=2)  # as newer training code writes it
    change(folder, "llm_config.json", num_hidden_layers=28, tie_word_embeddings=True, qk_norm=False)
    (folder / "bagel_config.json").unlink()  # the default sides are 64 and 70
    network, _ = weights.load(folder)
    config = network.config
    assert (config["vision"]["num_layers"], config["decoder"]["num_layers"]) == (2, 3)
    assert config["decoder"]["tied"] is False and config["decoder"]["qk_norm"] is True
    assert (config["latent_side"], config["vision"]["grid_side"]) == (8, 10)


@pytest.mark.parametrize(
    "file, field, value, message",
    [
        ("llm_config.json", "hidden_act", "relu", r"llm_config.json has hidden_act='relu', only 'silu'"),
        ("vit_config.json", "num_channels", 1, r"vit_config.json has num_channels=1, only 3"),
        ("bagel_config.json", "interpolate_pos", True, r"interpolate_pos=True, only False"),
        ("bagel_config.json", "vit_rope", True, r"vit_rope=True, only False"),
        ("vae_config.json", "out_ch", 1, r"vae_config.json has out_ch=1, only 3"),
    ],
)
def test_golden_folder_of_another_model_is_refused(folder: Path, file, field, value, message) -> None:
    change(folder, file, **{field: value})
    with pytest.raises(ValueError, match=message):
        weights.load(folder)


def test_config_errors_are_one_line(folder: Path) -> None:
    content = json.loads((folder / "llm_config.json").read_text())
    del content["num_attention_heads"]
    (folder / "llm_config.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"llm_config.json has no field 'num_attention_heads'"):
        weights.load(folder)
    (folder / "llm_config.json").write_text("{")
    with pytest.raises(ValueError, match=r"llm_config.json is no valid JSON"):
        weights.load(folder)
    (folder / "llm_config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"llm_config.json holds a list, expected a JSON object"):
        weights.load(folder)
    (folder / "llm_config.json").unlink()
    with pytest.raises(ValueError, match=r"The folder has no llm_config.json, which holds sizes"):
        weights.load(folder)


def test_a_network_the_reference_cannot_hold_is_not_written_in_its_layout(
    golden: Path, tmp_path: Path
) -> None:
    config = upstream.read_config(golden)
    odd = {**config, "prediction": "image", "autoencoder": {"kind": "patch", "latent_channels": 16}}
    with pytest.raises(ValueError, match=r"no place for prediction='image', an autoencoder of kind 'patch'"):
        upstream.config_to_upstream(odd)
    with pytest.raises(ValueError, match=r"The reference has no name for decoder.adapter.weight"):
        upstream.to_upstream({"decoder.adapter.weight": torch.zeros(1)})
    with pytest.raises(ValueError, match=r"Two weights have the same name once `module.` is taken away"):
        upstream.to_ours({"vae2llm.bias": torch.zeros(1), "module.vae2llm.bias": torch.zeros(1)})


@pytest.mark.weights
def test_the_released_folder_loads_whole() -> None:
    folder = os.environ.get("UNIMEDVL_WEIGHTS") or pytest.skip("UNIMEDVL_WEIGHTS names no folder")
    network, tokenizer = weights.load(folder, dtype=torch.bfloat16)
    with torch.device("meta"):
        assert network.config == released().config
    assert tokenizer is not None and tokenizer.marks == (151644, 151645, 151652, 151653)
