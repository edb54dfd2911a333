# SPDX-License-Identifier: Apache-2.0
"""Loading by part, in few bits, over a base, onto devices: nothing more than needed, and the same numbers."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from monai_unimedvl import weights
from monai_unimedvl.inferers import ImageInferer, TextInferer
from monai_unimedvl.networks.absent import absent_parts, build_parts
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.quantised import QuantisedLinear
from monai_unimedvl.networks.unimedvl import UniMedVL, from_config, nano
from monai_unimedvl.tokenizer import Tokenizer
from monai_unimedvl.weights.headers import AUTOENCODER, GENERATION, Entry

CONFIG = {
    "decoder": {
        "vocab_size": 280, "hidden_size": 64, "mlp_dim": 128, "num_layers": 2, "num_heads": 4,
        "num_kv_heads": 2, "max_context": 256,
    },
    "vision": {
        "hidden_size": 32, "mlp_dim": 64, "num_layers": 2, "num_heads": 2, "patch_size": 4, "grid_side": 8,
    },
    "autoencoder": {"kind": "patch", "patch": 4, "latent_channels": 12},
    "latent_patch": 1, "latent_side": 8,
    "grids": {"view": [16, 16, 4], "canvas": [16, 16, 4]},
}  # fmt: skip


def test_what_only_drawing_needs_is_known_by_its_names() -> None:
    network = nano(PatchCodec(8, 24), vocab_size=40, hidden_size=32, num_layers=1, strokes=4)
    reading = build_parts(network.config, ("understanding", "vision"))
    drawing = network.state_dict().keys() - reading.state_dict().keys()
    assert drawing == {x for x in network.state_dict() if re.search(f"{GENERATION}|{AUTOENCODER}", x)}
    for name in ("tones", "details", "strokes"):
        assert any(x.startswith(f"{name}.") for x in drawing)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A network of the released kind (untied head, velocities), with a tokenizer."""
    torch.manual_seed(0)
    tokenizer = Tokenizer.train(["an axial slice of the brain"] * 3, 280)
    config = {**CONFIG, "decoder": {**CONFIG["decoder"], "vocab_size": len(tokenizer)}}
    network = from_config(config)
    torch.nn.init.normal_(network.latent_out.weight, std=0.1)
    found = tmp_path_factory.mktemp("weights") / "whole"
    weights.save(network, tokenizer, found)
    return found


def answer(network: UniMedVL, tokenizer: Tokenizer) -> tuple[int, ...]:
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    (said,) = TextInferer(tokenizer, max_new_tokens=6)([[picture, "axial slice?"]], network)
    return said.ids


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> list[Entry]:
    """Every weight that is read from a file."""
    found: list[Entry] = []
    plain = Entry.read

    def spied(self: Entry) -> torch.Tensor:
        found.append(self)
        return plain(self)

    monkeypatch.setattr(Entry, "read", spied)
    return found


def test_answering_reads_no_generation_expert_and_no_autoencoder_and_says_the_same(
    folder: Path, read: list[Entry]
) -> None:
    whole, tokenizer = weights.load(folder)
    everything = sum(entry.nbytes for entry in read)
    read.clear()
    part, _ = weights.load(folder, parts=weights.ANSWERING)
    assert absent_parts(part) == ["generation", "autoencoder"]
    assert not any("generation" in name or "latent" in name for name in part.state_dict())
    assert not any(x.is_meta for x in (*part.parameters(), *part.buffers()))
    assert sum(entry.nbytes for entry in read) < 0.65 * everything
    assert answer(part, tokenizer) == answer(whole, tokenizer)


def test_a_part_that_was_not_loaded_is_named_when_it_is_needed(folder: Path) -> None:
    part, tokenizer = weights.load(folder, parts=("understanding",))
    with pytest.raises(ValueError, match=r"has an image, but this network no vision encoder"):
        answer(part, tokenizer)
    with pytest.raises(ValueError, match=r"needs the generation part .* load it with parts=\(..., 'generat"):
        ImageInferer(tokenizer, steps=1)([["a slice"]], part)
    half, _ = weights.load(folder, parts=("understanding", "generation"))
    with pytest.raises(ValueError, match=r"needs the autoencoder part of the network, which was not loaded"):
        ImageInferer(tokenizer, steps=1)([["a slice"]], half)
    with pytest.raises(
        ValueError, match=r"loaded without its generation, vision, autoencoder part: load all"
    ):
        weights.save(part, tokenizer, folder.parent / "again")
    assert not (folder.parent / "again").exists()


def test_parts_that_make_no_network_are_refused(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"parts=\('generation',\), expected some of .*'understanding'"):
        weights.load(folder, parts="generation")
    with pytest.raises(ValueError, match=r"parts=\('understanding', 'ears'\)"):
        weights.load(folder, parts=("understanding", "ears"))


@pytest.mark.parametrize("kind, far", [("int8", 0.03), ("int4", 0.4), ("nf4", 0.4)])
def test_quantised_while_loading_is_close_and_covers_the_decoder(folder: Path, kind: str, far: float) -> None:
    whole, tokenizer = weights.load(folder)
    small, _ = weights.load(folder, quantize=kind)
    narrow = [name for name, x in small.named_modules() if isinstance(x, QuantisedLinear)]
    assert len(narrow) == 2 * 2 * 7 + 1 and "decoder.head" in narrow  # layers, experts, linears; the head
    assert isinstance(small.vision.layers[0].fc1, torch.nn.Linear)
    ids = torch.arange(20)
    from monai_unimedvl.sequence import Text, pack

    seq = pack([[Text(ids)]], tokenizer.marks)
    with torch.no_grad():
        a, b = (x.logits(x(seq).hidden) for x in (small, whole))
    assert float((a - b).norm() / b.norm()) < far
    assert len(answer(small, tokenizer)) > 0
    with pytest.raises(ValueError, match=r"holds quantised weights, expected whole ones"):
        weights.save(small, tokenizer, folder.parent / "again")


def test_a_quantised_layer_is_in_memory_and_its_source_is_not(folder: Path, read: list[Entry]) -> None:
    small, _ = weights.load(folder, parts=weights.ANSWERING, quantize="int8", dtype=torch.bfloat16)
    assert {x.dtype for x in small.parameters()} == {torch.bfloat16}
    assert not [name for name, x in small.decoder.layers.named_parameters() if x.dim() == 2]
    held = sum(x.nbytes for x in (*small.parameters(), *small.buffers()))
    assert held < 0.4 * sum(entry.nbytes for entry in read)  # a quarter, and words and vision at half


def test_a_partial_fine_tune_is_merged_over_its_base(folder: Path, tmp_path: Path) -> None:
    base, tokenizer = weights.load(folder)
    tuned = {f"decoder.layers.0.mlp.understanding.{name}.weight" for name in ("gate", "up", "down")}
    content = load_file(folder / "model.safetensors")
    shutil.copy(folder / "config.json", tmp_path)
    save_file({name: content[name] + 1 for name in tuned}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"missing .*: if this is a fine-tune of some weights, give base="):
        weights.load(tmp_path)
    merged, words = weights.load(tmp_path, base=folder)
    assert words is not None and words.marks == tokenizer.marks  # the base's
    before = base.state_dict()
    for name, x in merged.state_dict().items():
        assert torch.equal(x, before[name] + (name in tuned)), name
    save_file({"decoder.embed.weight": torch.zeros(3, 64)}, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"is no part of whole: 1 weights of another shape, 0 that the base"):
        weights.load(tmp_path, base=folder)


def test_a_partial_fine_tune_in_the_upstream_layout_needs_no_config(golden: Path, tmp_path: Path) -> None:
    content = load_file(golden / "model.safetensors")
    save_file({"vae2llm.bias": content["vae2llm.bias"] + 1}, tmp_path / "model.safetensors")
    merged, _ = weights.load(tmp_path, base=golden)
    assert torch.equal(merged.latent_in.bias, content["vae2llm.bias"] + 1)
    assert torch.equal(merged.latent_in.weight, content["vae2llm.weight"])


def test_layers_on_disk_are_read_when_they_are_needed(folder: Path) -> None:
    whole, tokenizer = weights.load(folder)
    mapped = {"": "cpu", "decoder.layers.1": "disk", "vision.layers.0": "disk"}
    split, _ = weights.load(folder, device_map=mapped)
    assert split.decoder.layers[1].mlp.understanding.up.weight.is_meta
    assert answer(split, tokenizer) == answer(whole, tokenizer)
    assert split.decoder.layers[1].mlp.understanding.up.weight.is_meta  # and let go again
    automatic, _ = weights.load(folder, device_map="auto")
    assert answer(automatic, tokenizer) == answer(whole, tokenizer)


def test_device_maps_that_cannot_be_are_refused(folder: Path) -> None:
    for wrong, message in (
        ({"": 0, "decoder.layers.1": 1}, r"names 0, 1, expected at most one accelerator"),
        ({"decoder": "cpu"}, r"says nothing about \S+: add its module, or ''"),
        ({"": "cpu", "decoder.layer.1": "disk"}, r"names 'decoder.layer.1', which is no module"),
        ("balanced_low", r"device_map='balanced_low' is not known, expected 'auto' or a mapping"),
    ):
        with pytest.raises(ValueError, match=message):
            weights.load(folder, device_map=wrong)
    with pytest.raises(ValueError, match=r"device_map beside quantize or device"):
        weights.load(folder, device_map="auto", quantize="int8")


def test_weights_of_other_types_are_refused_or_cast(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "w")
    file = tmp_path / "w" / "model.safetensors"
    content = load_file(folder / "model.safetensors")
    save_file({**content, "latent_in.bias": content["latent_in.bias"].to(torch.int8)}, file)
    with pytest.raises(ValueError, match=r"latent_in.bias of w holds torch.int8, expected floating numbers"):
        weights.load(tmp_path / "w")
    narrow = {name: x.to(torch.float8_e4m3fn) for name, x in content.items()}
    save_file(narrow, file)
    with pytest.raises(ValueError, match=r"holds torch.float8_e4m3fn, .* load it with dtype=torch.bfloat16"):
        weights.load(tmp_path / "w")
    network, _ = weights.load(tmp_path / "w", dtype=torch.bfloat16)
    assert torch.equal(network.latent_in.bias, narrow["latent_in.bias"].to(torch.bfloat16))


def test_links_out_of_the_folder_are_refused_and_the_cache_of_the_hub_is_not(
    folder: Path, tmp_path: Path
) -> None:
    cache = tmp_path / "models--a--b"
    shutil.copytree(folder, cache / "blobs")
    (cache / "snapshots" / "main").mkdir(parents=True)
    for file in (cache / "blobs").iterdir():
        (cache / "snapshots" / "main" / file.name).symlink_to(Path("../../blobs") / file.name)
    weights.load(cache / "snapshots" / "main")
    (tmp_path / "links").mkdir()
    for file in (cache / "blobs").iterdir():
        (tmp_path / "links" / file.name).symlink_to(file)
    with pytest.raises(ValueError, match=r"config.json is a link out of links, expected a file in it: copy"):
        weights.load(tmp_path / "links")
    shutil.copytree(folder, tmp_path / "gone")
    (tmp_path / "gone" / "merges.txt").symlink_to("nowhere.txt")
    with pytest.raises(ValueError, match=r"merges.txt is a link to nothing: fetch the file again"):
        weights.load(tmp_path / "gone")


def test_a_header_that_lies_about_its_tensors_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path / "w")
    file = tmp_path / "w" / "model.safetensors"
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length]
    twisted = header.replace(b'"shape":[64]', b'"shape":[63]', 1)
    assert twisted != header
    file.write_bytes(content[:8] + twisted + content[8 + length :])
    with pytest.raises(ValueError, match=r"is damaged: its header gives \S+ bytes \d+ to \d+, expected 252"):
        weights.load(tmp_path / "w")


def test_a_network_that_draws_in_its_autoencoders_basis_needs_it(tmp_path: Path) -> None:
    from monai_unimedvl.networks.unimedvl import nano

    network = nano(PatchCodec(8, 12), vocab_size=280, hidden_size=32, num_layers=1)
    weights.save(network, None, tmp_path)
    with pytest.raises(ValueError, match=r"draws in the basis of its autoencoder, but parts=.*add 'autoenc"):
        weights.load(tmp_path, parts=("understanding", "generation"))
    part, _ = weights.load(tmp_path, parts=weights.ANSWERING)
    assert absent_parts(part) == ["generation", "autoencoder"]
