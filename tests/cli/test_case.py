# SPDX-License-Identifier: Apache-2.0
"""History, laboratory values, prior studies and boxes of the command line in the prompt, at their place."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pydicom
import pytest
import torch

from monai_unimedvl import provenance
from monai_unimedvl.cli import verbs


@pytest.fixture
def heard(monkeypatch):
    """The model is replaced by one that says what it is told to, and keeps what it heard."""
    kept = SimpleNamespace(prompts=[], says="No finding.")

    class Listener:
        def __init__(self, *args, **options):
            pass

        def __call__(self, batch, network):
            kept.prompts += batch
            answer = SimpleNamespace(text=kept.says, ids=(1,), logprobs=(0.0,), stop_reason="end")
            return [SimpleNamespace(**vars(answer))] * len(batch)

    monkeypatch.setattr(verbs, "TextInferer", Listener)
    return kept


@pytest.fixture
def known(tmp_path, picture):
    """Files of what is known."""
    (tmp_path / "labs.csv").write_text("name,value,unit,high\nCRP,110,mg/L,5\n")
    (tmp_path / "prior.txt").write_text("Clear lungs.\n")
    (tmp_path / "nothing.txt").write_text("\n")
    return tmp_path


def test_what_is_known_stands_in_the_prompt_in_order(command, known, picture, heard, tmp_path):
    words = ("--history", "Smoker", "--labs", known / "labs.csv", "--prior-report", known / "prior.txt")
    out = tmp_path / "a.json"
    code, _, err = command(
        "ask", picture, "Better?", *words, "--prior-image", picture, "--out", out, "--quiet"
    )
    assert (code, err) == (0, "")
    said = ["<image>" if isinstance(part, torch.Tensor) else part for part in heard.prompts[0]]
    assert said == [
        "History: Smoker.", "Laboratory: CRP 110 mg/L (high, normal up to 5).", "Prior study:", "<image>",
        "Prior report: Clear lungs.", "Current study:", "<image>", "Better?",
    ]  # fmt: skip
    made = json.loads(out.read_text())
    assert made["prompt"].startswith("History: Smoker. Laboratory") and len(made["inputs"]) == 4


def test_without_anything_known_the_prompt_is_images_and_question(command, picture, heard):
    assert command("ask", picture, "Which?", "--quiet")[0] == 0
    assert [type(part) is str for part in heard.prompts[0]] == [False, True]


@pytest.mark.parametrize("box", ["6,8,24,32=block", "70,80,50mm", "30,40,50,100,160,50mm"])
def test_a_box_on_the_slice_comes_back_at_its_place(command, scan, heard, box):
    """The model repeats the box it was given: pixels and mm come out as they went in."""
    words = ("--modality", "mri", "--slice", "10", f"--box={box}")
    assert command("ask", scan, "There?", *words, "--quiet")[0] == 0
    (region,) = [part for part in heard.prompts[-1] if isinstance(part, str) and part.startswith("Region")]
    heard.says = region
    code, out, _ = command("ask", scan, "There?", *words, "--json", "--quiet")
    (found,) = json.loads(out)["regions"]
    numbers = [float(x) for x in re.findall(r"-?\d+", box)]
    if box.endswith("mm"):
        wanted = torch.tensor([numbers[:3], numbers[-3:]])
        got = torch.tensor(found["mm"]).sort(0).values
        assert torch.allclose(got, wanted.sort(0).values, atol=0.3)  # a thousandth of 200 mm
    else:
        assert found["label"] == "block" and found["pixels"] == pytest.approx(numbers, abs=0.06)


def test_a_report_comes_in_parts_and_a_prior_one_is_read_from_what_we_wrote(command, series, heard, tmp_path):
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    heard.says = "Findings: A node. Impression: Benign."
    for name in ("a.json", "a.dcm"):
        code, out, err = command("report", series, "--out", tmp_path / name, "--json", "--quiet")
        assert code == 0, err
        assert json.loads(out)["report"] == {"findings": ["A node."], "impression": "Benign."}
    assert provenance.read_report(tmp_path / "a.dcm").impression == "Benign."
    for name in ("a.json", "a.dcm"):
        assert command("ask", series, "New?", "--prior-report", tmp_path / name, "--quiet")[0] == 0
        (prior,) = [p for p in heard.prompts[-1] if isinstance(p, str) and p.startswith("Prior report")]
        assert "A node." in prior and "Benign." in prior


def test_letters_outlive_the_character_set_of_the_source(command, series, heard, tmp_path):
    pytest.importorskip("highdicom", reason="the extra dicom is not installed")
    for path in series.iterdir():
        header = pydicom.dcmread(path)
        header.SpecificCharacterSet, header.PatientName = "ISO_IR 100", "M\u00fcller^J\u00f6rg"
        header.save_as(path)
    heard.says = "Findings: \u03b1-Strahler, Gr\u00f6\u00dfe 3 \u00b5m. Impression: \u826f\u6027."
    words = ("--keep-identity", "--format", "dicom", "--out", tmp_path / "a.dcm", "--quiet")
    code, _, err = command("report", series, *words)
    assert (code, err) == (0, "")
    said, header = provenance.read_report(tmp_path / "a.dcm"), pydicom.dcmread(tmp_path / "a.dcm")
    assert f"Findings: {said.findings} Impression: {said.impression}" == heard.says
    assert str(header.PatientName) == "M\u00fcller^J\u00f6rg"


def test_columns_of_a_list_say_what_is_known(command, known, heard):
    (known / "list.csv").write_text(
        'input,history,labs,box\nstain.png,Fever,labs.csv,"10,10,20,20;5,5"\nstain.png,,,\n'
    )
    words = ("--input-list", known / "list.csv", "--out", known / "r", "--quiet")
    assert command("ask", "Which?", *words)[0] == 0
    first, second = heard.prompts
    assert first[0] == "History: Fever." and "CRP 110" in first[1] and "<point>" in first[-2]
    assert len(second) == 2
    (known / "labs.csv").write_text("name,value\nCRP,1\n")  # another table is another request
    assert command("ask", "Which?", *words)[0] == 0 and len(heard.prompts) == 3
    code, _, err = command("edit", "Go.", *words)
    assert code == 2 and "history came, which edit does not take" in err


BAD = [
    (["--box", "1,2,3"], "'1,2,3' came, but X0,Y0,X1,Y1 or X,Y in pixels"),
    (["--box", "a,b,c,d"], "came, but X0,Y0,X1,Y1"),
    (["--box", "0,0,900,900"], "box 0,0,900,900: region .* leaves the picture"),
    (["--box", "20,20,10,10"], "left <= right and top <= bottom"),
    (["--box", "1,2,3mm"], "no place in mm: give regions in pixels"),
    (["--labs", "{0}/absent.csv"], "absent.csv does not exist"),
    (["--labs", "{0}/prior.txt"], "prior.txt holds no row with a name"),
    (["--prior-report", "{0}/nothing.txt"], "nothing.txt holds no word"),
    (["--prior-report", "{0}/absent.txt"], "absent.txt does not exist"),
    (["--prior-report", "{0}/stain.png"], "stain.png is no text in UTF-8"),
    (["--prior-image", "{0}/absent.png"], "absent.png does not exist"),
]


@pytest.mark.parametrize("words, message", BAD, ids=range(len(BAD)))
def test_what_is_not_known_so_is_one_line(words, message, command, known, picture):
    code, out, err = command("ask", picture, "?", *(word.format(known) for word in words), "--quiet")
    assert (code, out) == (2, "") and err.count("\n") == 1 and re.search(message, err), err
