# SPDX-License-Identifier: Apache-2.0
"""Lists of requests: each result once, whatever fails or is cut off; no name of a patient in what is kept."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest
from cli.conftest import NAME

from monai_unimedvl import provenance
from monai_unimedvl.cli import verbs


@pytest.fixture
def folder(tmp_path, picture, scan, series):
    """Three inputs that can be read and one that cannot, and a list of them."""
    (tmp_path / "broken.png").write_bytes(b"")
    (tmp_path / "list.txt").write_text(
        f"# four\n{picture.name}\n\n{series.name}\nbroken.png\n{picture.name}\n"
    )
    return tmp_path


@pytest.fixture
def asked(monkeypatch):
    """What was asked, in order; the network answers nothing slower than it must."""
    seen = []
    answer = verbs.ask

    def counted(options, model):
        seen.append(Path(options.images[0]).name)
        return answer(options, model)

    monkeypatch.setattr(verbs, "ask", counted)
    return seen


def lines(folder):
    return [json.loads(line) for line in (folder / "results.jsonl").read_text().splitlines()]


WORDS = ("--max-words", "2", "--quiet")


def test_a_list_goes_on_after_a_bad_file_and_says_which_failed(command, folder, asked):
    code, out, err = command(
        "ask", "Which?", "--input-list", folder / "list.txt", "--out", folder / "r", *WORDS
    )
    assert code == 1 and err == ""
    assert "3 of 4 done" in out and re.search(r"line 5  \S*broken.png  broken.png is empty", out)
    assert [line["line"] for line in lines(folder / "r")] == [2, 4, 5, 6]
    first, _, failed, last = lines(folder / "r")
    broken = [provenance.sha256(folder / "broken.png")]
    assert failed.pop("key") and failed == {
        "line": 5, "out": "ask-00005.json", "inputs": broken, "failed": "ValueError"
    }  # fmt: skip
    assert first["answer"] == last["answer"] and first["synthetic"] is True
    said = json.loads((folder / "r" / first["out"]).read_text())
    assert said["text"] == first["answer"] and said["synthetic"] and said["inputs"] == first["inputs"]
    assert first["outputs"] == {first["out"]: provenance.sha256(folder / "r" / first["out"])}


def test_links_in_a_circle_and_what_is_no_path_fail_alone(command, folder, asked):
    (folder / "circle.png").symlink_to(folder / "circle.png")
    rows = [{"input": name, "prompt": "Which?"} for name in ("circle.png", "a\0b.png", "stain.png")]
    (folder / "odd.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    code, out, _ = command("ask", "--input-list", folder / "odd.jsonl", "--out", folder / "odd", *WORDS)
    assert code == 1 and "1 of 3 done" in out
    assert ["failed" in line for line in lines(folder / "odd")] == [True, True, False]


def test_two_lists_into_one_folder_keep_each_others_results(command, folder, asked, monkeypatch):
    (folder / "one.txt").write_text("stain.png\n")
    rows = [{"input": "stain.png", "prompt": "Where?", "out": f"other-{n}.json"} for n in range(3)]
    (folder / "two.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    ask, out = verbs.ask, folder / "both"

    def meanwhile(options, model):  # the other list comes and ends while this one is at work
        monkeypatch.setattr(verbs, "ask", ask)
        assert command("ask", "--input-list", folder / "two.jsonl", "--out", out, *WORDS)[0] == 0
        return ask(options, model)

    monkeypatch.setattr(verbs, "ask", meanwhile)
    assert command("ask", "Which?", "--input-list", folder / "one.txt", "--out", out, *WORDS)[0] == 0
    names = {line["out"] for line in lines(out)}
    assert names == {"ask-00001.json", "other-0.json", "other-1.json", "other-2.json"}


def test_a_rerun_asks_only_for_what_failed_was_cut_off_or_has_changed(command, folder, asked):
    again = ("ask", "Which?", "--input-list", folder / "list.txt", "--out", folder / "r", *WORDS)
    assert command(*again)[0] == 1 and len(asked) == 4
    asked.clear()
    assert command(*again)[0] == 1 and asked == ["broken.png"]  # the rest is done
    asked.clear()
    shutil.copy(folder / "stain.png", folder / "broken.png")  # mended
    code, out, _ = command(*again)
    assert code == 0 and asked == ["broken.png"] and "4 of 4 done (3 were there already)" in out
    asked.clear()
    results = folder / "r" / "results.jsonl"
    results.write_bytes(results.read_bytes()[:-40])  # power went in the last line
    (folder / "r" / "ask-00002.json").write_text("{")  # and this file was cut
    assert command(*again)[0] == 0 and asked == ["stain.png", "stain.png"]
    assert len(lines(folder / "r")) == 4
    asked.clear()
    assert command(*again, "--seed", "1")[0] == 0 and len(asked) == 4  # another request
    asked.clear()
    (folder / "series" / "0.dcm").write_bytes((folder / "series" / "1.dcm").read_bytes())
    command(*again, "--seed", "1")
    assert asked == ["series"]


def test_a_stop_keeps_what_is_done_and_says_how_to_go_on(command, folder, asked, monkeypatch):
    answer = verbs.ask

    def stopped(options, model):
        if "series" in options.images[0]:
            raise KeyboardInterrupt
        return answer(options, model)

    again = ("ask", "Which?", "--input-list", folder / "list.txt", "--out", folder / "r", *WORDS)
    with monkeypatch.context() as patch:
        patch.setattr(verbs, "ask", stopped)
        code, _, err = command(*again)
    assert code == 130 and "the same command goes on" in err
    assert [line["line"] for line in lines(folder / "r")] == [2]
    asked.clear()
    command(*again)
    assert asked == ["series", "broken.png", "stain.png"]


def test_csv_and_jsonl_lines_say_prompt_seed_and_name(command, folder):
    (folder / "a.csv").write_text(
        'input,prompt,seed,out,modality,slice\nstain.png,"Stain, please.",7,one.png,,\n'
        f'"{NAME}.nii.gz",,,sub/two.png,mri,3\n'
    )
    words = ("--steps", "1", "--out", folder / "r", "--quiet")
    code, out, err = command("edit", "Sharpen.", "--input-list", folder / "a.csv", *words)
    assert (code, err) == (0, "")
    one, two = (provenance.verify(folder / "r" / name) for name in ("one.png", "sub/two.png"))
    assert (one["prompt"], one["seed"]) == ("Stain, please.", 7)
    assert (two["prompt"], two["seed"], two["slices"]) == ("Sharpen.", 0, [3])
    (folder / "b.jsonl").write_text('{"prompt": "T1", "seed": 3, "out": "d.png"}\n{"prompt": "T2"}\n')
    code, _, err = command("draw", "--input-list", folder / "b.jsonl", *words)
    assert (code, err) == (0, "") and provenance.verify(folder / "r" / "draw-00002.png")["prompt"] == "T2"
    (folder / "c.jsonl").write_text('{"input": ["stain.png", "series"]}\n')
    code, out, _ = command(
        "report", "--input-list", folder / "c.jsonl", "--out", folder / "r", "--json", *WORDS
    )
    assert code == 0 and json.loads(out) == {
        "results": str(folder / "r" / "results.jsonl"), "done": 1, "asked": 1, "failures": []
    }  # fmt: skip


BAD = [
    ("x.csv", "path,prompt\na,b\n", "x.csv has the column 'path', expected each of input, prompt"),
    ("x.csv", "input,prompt\na\n", "x.csv, line 2: 1 cells under 2 columns"),
    ("x.csv", "input,seed\nstain.png,one\n", "line 2: seed is 'one', but a whole number"),
    ("x.csv", "input,plane\nstain.png,top\n", "line 2: plane is 'top', expected axial"),
    ("x.csv", "input,out\nstain.png,../a.json\n", "out is '../a.json', but a name within the folder"),
    ("x.csv", "input,out\nstain.png,a.json\nstain.png,a.json\n", "lines 2 and 3: both write a.json"),
    ("x.csv", "input,out\nstain.png,a.txt\n", "line 2: --out a.txt came, but a name in .json or .dcm"),
    ("x.csv", 'input\n"a\n', "no CSV"),
    ("x.csv", "prompt\nWhich?\n", "line 2: no input"),
    ("x.jsonl", '{"input": "a"\n', "x.jsonl, line 1: no JSON"),
    ("x.jsonl", '["a"]\n', "line 1: a JSON list, but an object"),
    ("x.jsonl", '{"image": "a"}\n', "'image' is not known, expected input"),
    ("x.jsonl", '{"input": 3}\n', "input is 3, but a path"),
    ("x.jsonl", '{"input": "a", "prompt": ["b"]}\n', r"prompt is \['b'\], but a text"),
    ("x.json", "[]", "is JSON, but one object on each line"),
    ("x.txt", "# nothing\n", "x.txt names nothing"),
]


@pytest.mark.parametrize("name, text, message", BAD, ids=range(len(BAD)))
def test_a_list_that_does_not_fit_is_one_line_and_exit_code_2(
    name, text, message, command, tmp_path, picture
):
    (tmp_path / name).write_text(text)
    code, out, err = command("ask", "?", "--input-list", tmp_path / name, "--out", tmp_path / "r", "--quiet")
    assert (code, out) == (2, "") and err.count("\n") == 1 and re.search(message, err), err
    assert not (tmp_path / "r").exists()


@pytest.mark.parametrize(
    "words, message",
    [
        (
            ["ask", "{0}/stain.png", "?", "--input-list", "{0}/list.txt"],
            "stain.png' came beside",
        ),
        (["ask", "--input-list", "{0}/list.txt"], "^unimedvl ask: list.txt, line 2: the question is empty"),
        (["ask", "?", "--input-list", "{0}/absent.txt"], "absent.txt cannot be read .No such file"),
        (["ask", "?", "--input-list", "{0}/stain.png"], "is not UTF-8 text"),
        (["ask", "?", "--input-list", "{0}/list.txt", "--temperature", "-1"], "temperature is -1"),
        (["edit", "Go.", "--input-list", "{0}/list.txt", "--guidance", "0.5"], "text=0.5"),
        (
            ["ask", "?", "--input-list", "{0}/list.txt", "--out", "{0}/stain.png"],
            "is a file, but",
        ),
        (["edit", "Go.", "--input-list", "{0}/self.csv", "--out", "{0}"], "is the input"),
        (
            ["ask", "?", "--input-list", "{0}/list.txt", "--audit", "{0}/stain.png/a"],
            "cannot be written",
        ),
        (["ask", "{0}/stain.png"], "1 word came, but `unimedvl ask IMAGE ... QUESTION` is expected"),
        (["draw", "a", "b"], "2 words came, but `unimedvl draw WORDS` is expected"),
        (["edit", "a", "b", "c"], "3 words came"),
        (["segment", "--task", "bone"], "0 words came"),
    ],
)
def test_words_that_do_not_fit_are_one_line_and_exit_code_2(words, message, command, folder):
    (folder / "self.csv").write_text("input,out\nstain.png,stain.png\n")
    code, out, err = command(*(word.format(folder) for word in words), "--quiet")
    assert (code, out) == (2, "") and err.count("\n") == 1 and re.search(message, err), err


def test_words_may_stand_between_options(command, picture, tmp_path):
    out = ("--out", tmp_path / "o.png")
    assert command("edit", picture, "--steps", "1", "Sharpen.", *out, "--quiet")[0] == 0
    assert provenance.verify(tmp_path / "o.png")["prompt"] == "Sharpen."
    assert command("ask", "--max-words", "1", picture, "--quiet", "Which?")[0] == 0


def test_the_audit_has_a_line_per_request_and_no_name(command, folder, scan, tmp_path):
    audit = tmp_path / "log" / "audit.jsonl"
    again = ("--modality", "mri", "--audit", audit, *WORDS)
    code, out, _ = command("ask", scan, f"Is {NAME} ill?", *again, "--who", "PACS-7")
    assert code == 0
    assert command("ask", scan, "?", "--slice", "99", *again)[0] == 2
    words = ("--out", folder / "r", "--audit", audit, *WORDS)
    assert command("ask", f"Is {NAME} ill?", "--input-list", folder / "list.txt", *words)[0] == 1
    said = [json.loads(line) for line in audit.read_text().splitlines()]
    outcomes = [line["outcome"] for line in said]
    assert outcomes == ["done", "failed: ValueError", "done", "done", "failed: ValueError", "done"]
    assert said[0]["inputs"] == [provenance.sha256(scan)] and len(said[0]["model"]) == 64
    assert said[2]["outputs"] == [provenance.sha256(folder / "r" / "ask-00002.json")]
    assert said[0]["who"] == "PACS-7" and all(
        line["who"] and line["when"].endswith("+00:00") for line in said
    )
    assert NAME not in audit.read_text() and str(tmp_path) not in audit.read_text()
    for path in (folder / "r").iterdir():  # the prompt is kept as it was written, names of files are not
        if path.name == "results.jsonl":
            assert NAME not in path.read_text() and str(tmp_path) not in path.read_text()
