# SPDX-License-Identifier: Apache-2.0
"""Every shipped bundle as `bundle copy` writes it: its papers, configs that MONAI accepts, marked results.

The network is a random one of the right kind, saved into the copy; the trained weights are run too.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from pydoc import locate
from typing import Any

import jsonschema
import nibabel
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, ConfigWorkflow, load, verify_net_in_out
from PIL import Image

from monai_unimedvl import __version__, bundle, provenance, weights
from monai_unimedvl.bundle import places, shipping
from monai_unimedvl.bundle.checks import verify
from monai_unimedvl.data.atlas import AtlasDataset, licences
from monai_unimedvl.evaluation import Report, Row
from monai_unimedvl.inferers import ImageInferer
from monai_unimedvl.networks.autoencoder import PatchCodec
from monai_unimedvl.networks.unimedvl import nano
from monai_unimedvl.tokenizer import Tokenizer

ROOT = Path(__file__).resolve().parent.parent
BUNDLES = sorted(path.parent.parent for path in (ROOT / "bundles").glob("*/configs/metadata.json"))
NANO = ROOT / "bundles" / "unimedvl_nano"
CONFIGS = [pytest.param(file, id=f"{file.parent.parent.name}/{file.name}") for folder in BUNDLES
           for file in sorted((folder / "configs").glob("*.json"))]  # fmt: skip

SECTIONS = (
    "Model Overview", "Data", "Training configuration", "Performance", "MONAI Bundle Commands", "Limitations",
    "Citation", "References", "License",
)  # fmt: skip

pytestmark = pytest.mark.filterwarnings("ignore:parsing config_file")  # before it reads any


@pytest.fixture(scope="session")
def random_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weights folder of a random nano with one layer."""
    torch.manual_seed(0)
    words = ["Which plane is this? Segment grey matter, white matter and CSF. Axial T1 MRI"] * 3
    tokenizer = Tokenizer.train(words, 300)
    codec = PatchCodec.fit(torch.rand(4, 3, 64, 64) * 2 - 1, patch=8, channels=12)
    network = nano(codec, vocab_size=len(tokenizer), hidden_size=32, num_layers=1)
    torch.nn.init.normal_(network.latent_out.weight, std=0.3)
    folder = tmp_path_factory.mktemp("weights")
    weights.save(network, tokenizer, folder)
    return folder


def copy_of(name: str, folder: Path, random_weights: Path) -> Path:
    """A copy of a bundle with the random network in it."""
    bundle.copy(name, folder)
    shutil.rmtree(folder / "models")
    shutil.copytree(random_weights, folder / "models")
    return folder


@pytest.fixture(params=[folder.name for folder in BUNDLES])
def every(request: pytest.FixtureRequest, random_weights: Path, tmp_path: Path) -> Path:
    """Each bundle in turn."""
    return copy_of(request.param, tmp_path / request.param, random_weights)


@pytest.fixture
def copied(random_weights: Path, tmp_path: Path) -> Path:
    """The nano, which has all tasks."""
    return copy_of(NANO.name, tmp_path / "copy", random_weights)


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Another working directory; MONAI's additions to sys.path do not stay."""
    place = tmp_path / "elsewhere"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield place


def workflow(folder: Path, *names: str, kind: str = "inference", **overrides: Any) -> ConfigWorkflow:
    """The workflow of some config files laid over each other, as `monai.bundle run` makes it."""
    files = [str(folder / "configs" / f"{name}.json") for name in names]
    made = ConfigWorkflow(files, workflow_type=kind, logging_file=False, **overrides)
    made.initialize()
    return made


def targets(config: Any) -> Iterator[str]:
    """Every `_target_` in a config."""
    if isinstance(config, dict):
        yield from [config["_target_"]] if "_target_" in config else []
        config = list(config.values())
    if isinstance(config, list):
        for part in config:
            yield from targets(part)


def test_there_is_a_bundle() -> None:
    assert BUNDLES and [folder.name for folder in BUNDLES] == bundle.available()


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_metadata_fits_the_schema_and_the_tested_versions(folder: Path) -> None:
    schema = json.loads((ROOT / "bundles" / "meta_schema_20240725.json").read_text("utf8"))
    meta = json.loads((folder / "configs" / "metadata.json").read_text("utf8"))
    jsonschema.validate(meta, schema)
    assert meta["schema"].endswith("meta_schema_20240725.json") and meta["version"] in meta["changelog"]
    assert next(iter(meta["network_data_format"]["inputs"])) == "image"
    assert next(iter(meta["network_data_format"]["outputs"])) == "pred"
    pins = dict(re.findall(r"^([\w-]+)==(\S+)", (ROOT / "constraints.txt").read_text("utf8"), re.M))
    pins["monai-unimedvl"] = __version__
    needed = {**meta["required_packages_version"], "monai": meta["monai_version"]}
    needed |= {"torch": meta["pytorch_version"], "numpy": meta["numpy_version"]}
    for name, version in needed.items():
        assert pins[name] == version, f"{name}: metadata says {version}, constraints.txt {pins[name]}"


@pytest.mark.parametrize("file", CONFIGS)
def test_configs_parse_and_name_only_what_there_is(file: Path) -> None:
    for name in targets(ConfigParser.load_config_file(file)):
        assert "." in name and locate(name) is not None, f"{name} does not exist under its full name"


def test_the_papers_are_there_and_hold_no_path_of_a_machine(every: Path) -> None:
    assert "Apache License" in (every / "LICENSE").read_text("utf8")
    assert not list(every.rglob("*.py")), "a bundle holds no Python"
    readme = (every / "docs" / "README.md").read_text("utf8")
    for section in SECTIONS:
        assert re.search(rf"^#+ {section}", readme, re.M), f"the zoo expects a section {section}"
    assert "BUNDLE_NAME" not in readme and "<!-- shared" not in readme and every.name in readme
    for linked in re.findall(r"\]\((?!http)([^)#]+)\)", readme):
        assert (every / "docs" / linked).exists(), f"README links to {linked}"
    for file in every.rglob("*"):
        if file.suffix in (".json", ".md", ".txt", ".conf") and "models" not in file.parts:
            assert not re.search(r"/(home|root|work|tmp|Users)/", file.read_text("utf8")), file
        assert not file.is_file() or file.stat().st_size < 25_000_000
    named = (every / "docs" / "data_license.txt").read_text("utf8")
    if "large_weights" in bundle.metadata(every):
        assert "makers of the weights" in named
        return
    free = {name for name, *_ in licences(permissive_only=True)}
    for name, _, licence, used in licences():
        entry = named.split(f"\n{name} ")[1].split("\n\n")[0]
        assert licence in entry and used in entry
        assert ("not in the permissive-only" in entry) == (name not in free)
    samples = (every / "samples" / "README.md").read_text("utf8")
    for image in (every / "samples").rglob("*.png"):
        name = image.relative_to(every / "samples").as_posix()
        assert f"| {name} |" in samples, "name it with its licence"
        assert image.stat().st_size < 100_000


def test_monai_finds_every_property(every: Path) -> None:
    assert workflow(every, "inference").check_properties() == []
    assert workflow(every, "inference", "evaluate", kind="evaluation").check_properties() == []


@pytest.mark.slow
@pytest.mark.parametrize("names", [["pretrain"], ["pretrain", "pretrain_permissive"]])
def test_monai_finds_every_property_of_the_pretraining(copied: Path, names: list[str]) -> None:
    made = workflow(copied, *names, kind="train", vision_steps=0)  # MONAI builds what it checks: the corpus
    assert made.check_properties() == []
    assert made.parser.get("permissive_only", False) == ("pretrain_permissive" in names)


def test_inference_answers_and_draws_and_marks_what_it_made(copied: Path, elsewhere: Path) -> None:
    made = workflow(copied, "inference", question="Which plane is this?", seed=3, steps=2, drawing_steps=3)
    assert Path(made.bundle_root) == copied, "a copy works with its own files"
    assert made.evaluator.__class__.__module__.startswith("monai."), "the engine is MONAI's own"
    made.run()
    made.finalize()
    stems = sorted(path.stem for path in (copied / "samples" / "brain").glob("*.png"))
    written = {path.name for path in (elsewhere / "eval").iterdir()}
    drawn = {f"{stem}-drawing.png" for stem in stems} | {"imagined.png"}
    assert written == drawn | {f"{n}.json" for n in drawn} | {f"{stem}-answer.json" for stem in stems}
    for name in drawn:
        manifest = provenance.verify(elsewhere / "eval" / name)
        assert (manifest["seed"], manifest["steps"]) == (3, 3 if name == "imagined.png" else 2)
        assert manifest["weights"] == bundle.digest(copied)
    assert provenance.verify(elsewhere / "eval" / "imagined.png")["text_guidance"] == 2.0
    answer = json.loads((elsewhere / "eval" / f"{stems[0]}-answer.json").read_text("utf8"))
    assert answer["synthetic"] is True and answer["prompt"] == "Which plane is this?" and "text" in answer
    assert answer["inputs"] == [provenance.sha256(copied / "samples" / "brain" / f"{stems[0]}.png")]


def test_what_the_user_overrides_reaches_the_result(copied: Path, elsewhere: Path, tmp_path: Path) -> None:
    (tmp_path / "scans").mkdir()
    volume = np.random.default_rng(0).random((20, 24, 12), dtype=np.float32) * 900
    nibabel.save(nibabel.Nifti1Image(volume, np.eye(4)), tmp_path / "scans" / "case.nii.gz")
    Image.fromarray(np.full((40, 30), 99, np.uint8)).save(tmp_path / "scans" / "wide.png")
    options = {"instruction": "white matter", "displayable_configs#steps": 1, "output_dir": "out"}
    made = workflow(copied, "inference", dataset_dir=str(tmp_path / "scans"), modality="mri", **options)
    made.run_id = "draw"
    made.run()
    names = sorted(path.name for path in (elsewhere / "out").glob("*.png"))
    assert len(names) == 8 + 1 and names[-1] == "wide-drawing.png"
    assert re.fullmatch(r"case-\d{3}-drawing\.png", names[0])
    manifest = provenance.verify(elsewhere / "out" / names[0])
    assert manifest["prompt"] == "white matter" and manifest["steps"] == 1
    assert manifest["slices"] == [int(names[0].split("-")[1])]
    assert Image.open(elsewhere / "out" / "wide-drawing.png").size == (30, 40), "the pixels of the file"
    empty = workflow(copied, "inference", dataset_dir=str(elsewhere / "nowhere"))
    with pytest.raises(RuntimeError) as caught:
        empty.run()
    assert "does not exist, expected a folder of images" in str(reasons(caught.value))


def test_a_volume_comes_back_in_the_space_of_its_source(
    random_weights: Path, elsewhere: Path, tmp_path: Path
) -> None:
    folder = copy_of("unimedvl_volume", tmp_path / "volume", random_weights)
    affine = np.array([[0, -3.0, 0, 30], [3.0, 0, 0, -20], [0, 0, 6.0, -9], [0, 0, 0, 1]])
    values = np.random.default_rng(0).random((40, 44, 4), dtype=np.float32) * 900
    (tmp_path / "scans").mkdir()
    nibabel.save(nibabel.Nifti1Image(values, affine), tmp_path / "scans" / "case.nii.gz")
    options = {"steps": 1, "slices": 2, "instruction": "grey matter", "question": "Which plane is this?"}
    made = workflow(folder, "inference", dataset_dir=str(tmp_path / "scans"), **options)
    assert made.check_properties() == []
    made.run()
    drawn = nibabel.load(elsewhere / "eval" / "case-drawing.nii.gz")
    assert drawn.shape == values.shape and np.allclose(drawn.affine, affine)
    manifest = provenance.verify(elsewhere / "eval" / "case-drawing.nii.gz")
    assert manifest["prompt"] == "grey matter" and manifest["weights"] == bundle.digest(folder)
    report = json.loads((elsewhere / "eval" / "case-report.json").read_text("utf8"))
    assert report["text"].count("Axial slice, S ") == 2 and report["synthetic"] is True


def test_the_released_bundle_without_weights_says_where_they_are(tmp_path: Path) -> None:
    folder = bundle.copy("unimedvl_released", tmp_path / "unimedvl_released")
    with pytest.raises(
        ValueError, match="model.pt is a placeholder without weights: fetch them as docs/README"
    ):
        bundle.load(folder)
    assert verify(folder) == [], "its papers and configs are in order"
    made = workflow(folder, "inference", dataset_dir=str(NANO / "samples" / "brain"))
    with pytest.raises(RuntimeError) as caught:
        made.run()
    assert "placeholder without weights" in str(reasons(caught.value))


def reasons(error: BaseException | None) -> list[str]:
    """The messages of an error and of its causes: MONAI wraps what a component raises."""
    return [] if error is None else [str(error), *reasons(error.__cause__)]


def test_the_network_is_a_tensor_path_that_monai_can_verify(every: Path) -> None:
    configs = every / "configs"
    verify_net_in_out("network_def", str(configs / "metadata.json"), str(configs / "inference.json"))


def test_monais_load_gives_the_network_with_the_trained_weights(tmp_path: Path) -> None:
    made = {}
    for name in ("unimedvl_nano", "unimedvl_image_translation"):
        bundle.copy(name, tmp_path / name)
        made[name] = load(
            name=name, bundle_dir=str(tmp_path), source="github", repo="a/b/c", workflow_type="inference"
        )
    network, tokenizer = bundle.load(NANO)
    image = torch.rand(2, 3, 64, 64)
    instruction = "Segment grey matter, white matter and CSF."
    steps = ConfigParser.load_config_file(NANO / "configs" / "inference.json")["steps"]
    draw = ImageInferer(tokenizer, steps=steps, shift=network.timestep_shift)
    (expected,) = draw([[image[1], instruction]], network)
    for path in made.values():
        torch.testing.assert_close(path(image)[1], expected, atol=1e-5, rtol=0)
    usual = load(name="unimedvl_image_translation", bundle_dir=str(tmp_path), source="github", repo="a/b/c")
    torch.testing.assert_close(usual(image)[1], expected, atol=1e-5, rtol=0)  # of train.json
    other = made["unimedvl_nano"]
    before = other(image)
    other.network.latent_out.weight.data[0, 0] += 1
    assert not torch.equal(other(image), before), "a weight of the network decides what is drawn"


@pytest.mark.parametrize("name", bundle.available())
def test_training_has_the_network_of_inference(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shipping, "_weights", lambda name, own: {})
    files = bundle.compose(name)
    parsers = {}
    for kind in ("train", "inference"):
        parser = parsers[kind] = ConfigParser(json.loads(files[f"configs/{kind}.json"]))
        parser["network_def#_target_"] = "builtins.dict"
        parser["model"] = ["the network"]
        parser["tokenizer"] = "$type('Words', (), {'encode': str, 'marks': 0})"
    made = {kind: parser.get_parsed_content("network_def") for kind, parser in parsers.items()}
    assert made["train"] == made["inference"] and made["train"]["network"] == "the network"


def test_scores_are_filled_into_the_papers_by_a_command(copied: Path, tmp_path: Path) -> None:
    row = Row("sr4", "test", "all", "4 steps", "PSNR", 7, 31.25, 30.0, 32.0, {"bicubic": 28.0}, 40.0)
    Report([row], [], {}).save(tmp_path / "scores")
    made = workflow(copied, "inference", "evaluate", kind="evaluation", output_dir=str(tmp_path / "scores"))
    made.run_id = "document"
    made.run()
    readme = (copied / "docs" / "README.md").read_text("utf8")
    assert "31.25" in readme.split("<!-- scores -->")[1].split("<!-- /scores -->")[0]
    assert bundle.metadata(copied)["eval_metrics"] == {"sr4, PSNR, test, 4 steps": 31.25}
    assert bundle.metadata(copied)["version"] == bundle.metadata(NANO)["version"]


@pytest.mark.parametrize("name", ["unimedvl_nano", "unimedvl_vqa_report"])
@pytest.mark.parametrize("plane", ["axial", "coronal"])
def test_the_trained_network_knows_the_planes_of_its_samples(
    name: str, plane: str, elsewhere: Path, tmp_path: Path
) -> None:
    made = workflow(bundle.copy(name, tmp_path / name), "inference")
    made.run()
    answer = json.loads((elsewhere / "eval" / f"icbm152_{plane}-answer.json").read_text("utf8"))
    assert answer["text"] == plane


def test_scores_reach_every_bundle_with_these_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(ROOT / "bundles", tmp_path / "bundles")
    monkeypatch.setattr(places, "BUNDLES", tmp_path / "bundles")
    rows = [
        Row("sr4", "test", "all", "4 steps", "PSNR", 7, 31.25, 30.0, 32.0, {"bicubic": 28.0}, 40.0),
        Row("vqa", "test", "all", "", "exact match", 9, 0.123, 0.1, 0.2, {}, None),
    ]
    Report(rows, [], {}).save(tmp_path / "scores")
    bundle.document(tmp_path / "scores", "unimedvl_nano")
    found = {name: bundle.metadata(name)["eval_metrics"] for name in bundle.available()}
    assert found["unimedvl_nano"] == {"sr4, PSNR, test, 4 steps": 31.25, "vqa, exact match, test": 0.123}
    assert found["unimedvl_vqa_report"] == {"vqa, exact match, test": 0.123}
    assert found["unimedvl_image_translation"] == {"sr4, PSNR, test, 4 steps": 31.25}
    readme = (tmp_path / "bundles" / "unimedvl_vqa_report" / "docs" / "README.md").read_text("utf8")
    assert "0.123" in readme and "31.25" not in readme


@pytest.mark.slow
def test_monais_command_runs_and_verifies_the_bundle_from_another_directory(
    copied: Path, elsewhere: Path
) -> None:
    words = ["--question", "Which plane is this?", "--instruction", "grey matter"]
    words += ["--seed", "3", "--steps", "1"]
    config, meta = str(copied / "configs" / "inference.json"), str(copied / "configs" / "metadata.json")
    schema = str(ROOT / "bundles" / "meta_schema_20240725.json")
    for command in (
        ["run", "--config_file", config, "--dataset_dir", str(copied / "samples" / "eye"), *words],
        ["verify_metadata", "--meta_file", meta, "--filepath", schema],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "monai.bundle", *command], capture_output=True, text=True, cwd=elsewhere,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-2000:]
    assert "metadata is verified with no error" in done.stdout + done.stderr
    manifest = provenance.verify(elsewhere / "eval" / "retina-drawing.png")
    assert (manifest["prompt"], manifest["seed"], manifest["steps"]) == ("grey matter", 3, 1)
    assert (elsewhere / "eval" / "retina-answer.json").is_file()


@pytest.mark.slow
def test_training_runs_and_writes_weights_that_load(copied: Path, elsewhere: Path) -> None:
    made = workflow(copied, "pretrain", kind="train", max_steps=2, budget=600, vision_steps=0, compiled=False)
    made.run()
    network, tokenizer = bundle.load(elsewhere / "runs" / "weights")
    trained = made.network_def.state_dict()
    assert len(tokenizer) == network.decoder.embed.weight.shape[0]
    for name, x in network.state_dict().items():
        torch.testing.assert_close(x, trained[name].float(), atol=0, rtol=2**-8)


@pytest.mark.slow
def test_evaluation_scores_the_frozen_items(copied: Path, elsewhere: Path) -> None:
    made = workflow(copied, "inference", "evaluate", kind="evaluation", limit=1, tasks=["sr4"])
    made.run()
    assert Report.load(elsewhere / "eval" / "scores").find("sr4", "PSNR").n == 1


@pytest.mark.slow
@pytest.mark.parametrize("folder", [NANO], ids=lambda folder: folder.name)
def test_the_samples_are_free_pictures_of_the_test_part(folder: Path) -> None:
    held_out = AtlasDataset(section="test", permissive_only=True, progress=False)
    pictures = {picture.id: picture for picture in held_out.pictures if picture.section == "test"}
    named = (folder / "samples" / "README.md").read_text("utf8")
    rows = re.findall(r"^\| (\S+\.png) \|[^|]*\| (\S+) \|", named, re.M)
    assert len(rows) == len(list((folder / "samples").rglob("*.png")))
    for name, item in rows:
        sample = np.asarray(Image.open(folder / "samples" / name))
        np.testing.assert_array_equal(sample, pictures[item].pixels)
