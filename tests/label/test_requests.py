# SPDX-License-Identifier: Apache-2.0
"""What needs no MONAI Label: settings, stored lessons, files for viewers, the key, the folder of an app."""

from __future__ import annotations

import asyncio
import hashlib
import json
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import pydicom
import pytest
import torch
from pydicom.data import get_testdata_file

from monai_unimedvl import bundle
from monai_unimedvl.cli import main
from monai_unimedvl.label.__main__ import digest_of, parser, prepare
from monai_unimedvl.label.door import VARIABLE, Door
from monai_unimedvl.label.folder import write_app
from monai_unimedvl.label.knobs import Knob, settled, shown
from monai_unimedvl.label.lessons import gather, labels_in, names_of
from monai_unimedvl.label.pictures import is_volume
from monai_unimedvl.label.served import POINTER, Served
from monai_unimedvl.label.writing import write_values
from monai_unimedvl.provenance import Facts, read_mark
from monai_unimedvl.transforms.masks import Legend

KNOBS = {"plane": Knob(("auto", "axial")), "seed": Knob(0, 0), "lr": Knob(0.5, 0, 1), "whole": Knob(False)}


def test_settings_are_shown_filled_in_and_checked() -> None:
    assert shown(KNOBS) == {"plane": ["auto", "axial"], "seed": 0, "lr": 0.5, "whole": False}
    assert settled(KNOBS, {}) == ({"plane": "auto", "seed": 0, "lr": 0.5, "whole": False}, [])
    sent = {"plane": ["auto", "axial"], "seed": "7", "whole": "true", "lr": 1, "device": "cuda", "sed": 1}
    values, ignored = settled(KNOBS, sent)
    assert values == {"plane": "auto", "seed": 7, "lr": 1.0, "whole": True} and ignored == ["sed"]


@pytest.mark.parametrize(
    "request_, said",
    [
        ({"plane": "axail"}, "plane is 'axail' .did you mean 'axial'.., expected one of auto, axial"),
        ({"seed": -1}, "seed is -1, expected a whole number from 0"),
        ({"seed": 1.5}, "expected a whole number"),
        ({"lr": "nan"}, "lr is 'nan', expected a number from 0 to 1"),
        ({"whole": "maybe"}, "expected true or false"),
    ],
)
def test_a_setting_that_does_not_fit_is_refused(request_: dict[str, Any], said: str) -> None:
    with pytest.raises(ValueError, match=said):
        settled(KNOBS, request_)


class Store:
    """A data store in a folder: image -> tag -> (file, info)."""

    def __init__(self, folder: Path, labels: dict[str, dict[str, tuple[Path, dict]]]) -> None:
        self.folder, self.labels = folder, labels

    def datalist(self) -> list:
        return []

    def list_images(self) -> list[str]:
        return list(self.labels)

    def get_labels_by_image_id(self, image: str) -> dict[str, str]:
        return {tag: image for tag in self.labels[image]}

    def get_label_uri(self, image: str, tag: str) -> str:
        return str(self.labels[image][tag][0])

    def get_label_info(self, image: str, tag: str) -> dict:
        return self.labels[image][tag][1]

    def get_image_uri(self, image: str) -> str:
        return str(self.folder / f"{image}.nii.gz")


def test_stored_labels_become_items(tmp_path: Path) -> None:
    mask = tmp_path / "mask.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.zeros((4, 4, 2), np.uint8), np.eye(4)), mask)

    def words(name: str, content: Any) -> tuple[Path, dict]:
        (tmp_path / name).write_text(json.dumps(content))
        return tmp_path / name, {}

    told = {"label_info": [{"name": "liver", "idx": 3}]}
    store = Store(tmp_path, {
        "a": {
            "final": (mask, told),
            "original": words("made.json", {"prompt": "?", "text": "the model's own words teach nothing"}),
            "words": words("a.json", [{"question": "Well?", "answer": "yes"}, {"report": "All clear."}]),
        },
        "b": {"final": words("b.json", {"pairs": [{"question": "Well?", "answer": "no"}]})},
        "c": {"final": (mask, {})},
        "d": {"final": words("d.json", {"question": "?"})},
        "e": {"final": words("e.json", {"report": {"findings": ["One.", "Two."], "impression": "Three."}})},
    })  # fmt: skip
    found = gather(store, {})
    liver = next(item for item in found.items if item["kind"] == "mask")
    assert liver["values"] == {"liver": 3} and liver["words"] == "Segment the liver."
    said = {(item["words"], item["answer"]) for item in found.items if item["kind"] == "answer"}
    assert said == {
        ("Well?", "yes"), ("Describe this image.", "All clear."), ("Well?", "no"),
        ("Describe this image.", "One. Two. Three."),
    }  # fmt: skip
    assert len(found.skipped) == 2 and found.labels == {"liver": 3}
    assert len(gather(store, {"spleen": 1}, "masks").items) == 2
    assert all(item["kind"] == "answer" for item in gather(store, {}, "words").items)
    with pytest.raises(ValueError, match="no label that was handed in to learn from, expected masks"):
        gather(Store(tmp_path, {"a": {}}), {})


def test_volumes_are_told_from_pictures(tmp_path: Path) -> None:
    header = pydicom.dcmread(str(get_testdata_file("MR_small.dcm", download=False)))
    for folder, count in (("radiograph", 1), ("series", 2)):
        (tmp_path / folder).mkdir()
        for number in range(count):
            header.SOPInstanceUID = pydicom.uid.generate_uid(None, [folder, str(number)])
            header.save_as(tmp_path / folder / f"{number}.dcm")
    frames = tmp_path / "enhanced"
    frames.mkdir()
    header.NumberOfFrames = 2
    header.save_as(frames / "0.dcm")
    names = ("a.nii", "a.nii.gz", "a.nrrd", "a.SEG.NRRD", "a.png", "a.dcm")
    assert [is_volume(tmp_path / name) for name in names] == [True] * 4 + [False] * 2
    folders = ("radiograph", "series", "enhanced")
    assert [is_volume(tmp_path / name) for name in folders] == [False, True, True]


def test_names_of_labels() -> None:
    assert labels_in("liver=2, spleen = 5") == {"liver": 2, "spleen": 5}
    assert labels_in("liver,spleen") == {"liver": 1, "spleen": 2} and labels_in("") == {}
    assert names_of({"params": {"label_info": [{"name": "a"}, {"name": "b"}]}}, {}) == {"a": 1, "b": 2}
    for text in ("liver=x", "liver=0", "a=1,b=1"):
        with pytest.raises(ValueError, match="expected"):
            labels_in(text)
    with pytest.raises(ValueError, match="a mask came without names"):
        names_of({}, {})


@pytest.mark.parametrize("ending", [".nii.gz", ".nii"])
def test_a_file_for_a_viewer_keeps_numbers_place_and_mark(ending: str) -> None:
    labels = torch.arange(24, dtype=torch.uint8).view(2, 3, 4) % 3
    affine = np.array([[0, -2.0, 0, 1], [1.5, 0, 0, 2], [0, 0, 3, 3], [0, 0, 0, 1]])
    asked = {"result_extension": ending, "result_dtype": "int16"}
    legend = Legend({"one": (1, 2, 3), "two": (4, 5, 6)})
    path = Path(write_values(labels, affine, Facts("?", 0, "w"), asked, legend=legend))
    try:
        made = nibabel.load(path)
        assert (np.asarray(made.dataobj) == labels.numpy()).all() and np.allclose(made.affine, affine)
        assert np.asarray(made.dataobj).dtype == np.int16 and read_mark(path)["synthetic"] is True
        assert not path.with_name(path.name + ".json").exists(), "MONAI Label removes one file, not two"
    finally:
        path.unlink()
    with pytest.raises(ValueError, match="result_dtype is 'complex'"):
        write_values(labels, affine, Facts("?", 0, "w"), {"result_dtype": "complex"})


def _knock(door: Door, headers: dict[str, str]) -> int:
    """The status that a request gets."""
    sent: list[dict] = []

    async def run() -> None:
        scope = {"type": "http", "headers": [(k.encode(), v.encode()) for k, v in headers.items()]}

        async def send(message: Any) -> None:
            sent.append(message)

        await door(scope, None, send)  # type: ignore[arg-type]

    asyncio.run(run())
    return sent[0]["status"]


def test_the_door_opens_to_the_key_alone() -> None:
    async def inside(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200})

    door = Door(inside, hashlib.sha256(b"secret").hexdigest())
    for headers in ({"X-API-Key": "secret"}, {"authorization": "Bearer secret"}):
        assert _knock(door, headers) == 200
    for headers in ({}, {"x-api-key": "Secret"}, {"authorization": "Basic secret"}, {"x-api-key": ""}):
        assert _knock(door, headers) == 401
    assert _knock(Door(inside, None), {}) == 200


def test_the_launcher_listens_on_loopback_unless_there_is_a_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(VARIABLE, "")
    for name in ("MONAI_LABEL_DATASTORE_FILE_EXT", "PYTHONPATH"):
        monkeypatch.setenv(name, "")
    app = write_app(tmp_path / "app")
    common = ["--app", str(app), "--studies", "s"]
    words = prepare(parser().parse_args(common))
    assert words[words.index("--host") + 1] == "127.0.0.1"
    with pytest.raises(ValueError, match="--host 0.0.0.0 can be reached from elsewhere, expected a key"):
        prepare(parser().parse_args([*common, "--host", "0.0.0.0"]))
    (tmp_path / "short").write_text("1234\n")
    with pytest.raises(ValueError, match="--key-file short holds 4 characters, but a key has 16 or more"):
        digest_of(tmp_path / "short")
    with pytest.raises(ValueError, match="has no main.py"):
        prepare(parser().parse_args(["--app", str(tmp_path), "--studies", "s"]))
    with pytest.raises(ValueError, match="expected NAME=VALUE"):
        prepare(parser().parse_args([*common, "--filter", "MR"]))


def test_label_app_writes_a_folder_that_says_how_it_is_started(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    there = tmp_path / "app"
    assert main(["label-app", str(there), "--modality", "mri", "--labels", "liver=1"]) == 0
    assert "python -m monai_unimedvl.label --app" in capsys.readouterr().out
    names = {path.name for path in there.iterdir()}
    assert names == {"main.py", "app.json", "README.md", "requirements.txt", "no_deps.txt", "model"}
    assert json.loads((there / "app.json").read_text())["modality"] == "mri"
    for words, said in [
        ([str(there)], "is there already"),
        ([str(tmp_path / "b"), "--modality", "mir"], "modality is 'mir', expected one of"),
        ([str(tmp_path / "b"), "--model", "nope"], "neither a folder nor a shipped bundle"),
        ([str(tmp_path / "b"), "--labels", "a=0"], "expected names and numbers"),
    ]:
        assert main(["label-app", *words]) == 2 and said in capsys.readouterr().err
    assert not (tmp_path / "b").exists()


def test_published_weights_are_served_and_a_damaged_pointer_says_so(tmp_path: Path) -> None:
    served = Served(tmp_path / "model", "unimedvl_nano")
    first = served.opened()
    assert served.opened() is first and first.digest == bundle.digest("unimedvl_nano")
    from monai_unimedvl.training.keeping import keep

    other = served.home / "tuned" / "1" / "models"
    with torch.no_grad():
        first.network.decoder.embed.weight.add_(1e-3)
    keep(first.network, other, first.tokenizer)
    served.publish(other, {"labels": {"liver": 1}})
    assert served.opened().digest == bundle.digest(other) != first.digest
    assert served.told()["labels"] == {"liver": 1} and not Path(served.told()["weights"]).is_absolute()
    (served.home / POINTER).write_text("{")
    with pytest.raises(ValueError, match="serving.json is damaged, expected JSON: remove it"):
        served.opened()
