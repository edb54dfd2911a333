# SPDX-License-Identifier: Apache-2.0
"""Tables of protocols over one file, why two differ, and judges."""

from __future__ import annotations

import http.server
import json
import math
import threading
from dataclasses import replace

import pytest

from monai_unimedvl.evaluation.counting import as_json, count, table
from monai_unimedvl.evaluation.explain import explain
from monai_unimedvl.evaluation.predictions import Prediction
from monai_unimedvl.evaluation.protocols import PROTOCOLS, protocol, score
from monai_unimedvl.evaluation.protocols.judge import (
    SAME_MEANING,
    Endpoint,
    JudgePrompt,
    LocalJudge,
    Recorder,
    Replay,
    begin_correctness,
    judged,
    right_or_wrong,
    zero_is_right,
)

ROWS = [
    Prediction("a", truth="no", answer="normal", answer_type="closed", benchmark="vqa-rad", image="i1"),
    Prediction(
        "b", truth="yes", answer="yes, abnormal", answer_type="closed", benchmark="vqa-rad", image="i1"
    ),
    Prediction("c", truth="left lung", answer="the left lung", answer_type="open", benchmark="vqa-rad"),
    Prediction("d", truth="heart", answer="", answer_type="open", benchmark="vqa-rad"),
    Prediction("e", truth="是", answer="是的", answer_type="closed", benchmark="slake", language="zh"),
    Prediction("f", truth="Yes", answer="Yes, it is", answer_type="closed", benchmark="slake"),
    Prediction("g", truth="B", answer="A large mass", options=("mass", "none"), answer_type="choice"),
    Prediction("h", truth="liver", answer="I'm sorry, I can't", answer_type="open", benchmark="pathvqa"),
    Prediction("i", truth="yes", answer="yes", answer_type="closed", benchmark="pathvqa"),
]  # fmt: skip


def test_one_file_is_counted_by_every_protocol():
    drawing = Prediction("z", task="sr4", drawn="a.png", truth_image="b.png")
    (whole,) = count([*ROWS, drawing], ["strict-v1"])
    assert whole.empty == 1 and whole.left_out == {"its truth is an image": 1}
    found = {one.protocol: one for one in count([replace(row, benchmark="") for row in ROWS])}
    assert [name.split()[0] for name in found] == list(PROTOCOLS)
    strict = {(line.group, line.kind): line for line in found["strict-v1 1"].lines}
    assert strict["en", "closed"].n == 4 and strict["en", "closed"].value == 0.75
    assert strict["en", "micro"].n == 8 and strict["en", "micro"].value == 4 / 8
    assert strict["en", "macro"].value == pytest.approx((3 / 4 + 1 / 3 + 0) / 3)
    assert strict["zh", "closed"].n == 1 and ("all", "micro") not in strict
    assert found["strict-v1 1"].empty == 1 and found["strict-v1 1"].refused == 1
    assert found["strict-v1 1"].left_out == {}
    for one in found.values():
        assert (
            sum(one.left_out.values()) + sum(x.n for x in one.lines if x.kind in ("closed", "open", "choice"))
            == 9
        )


def test_benchmarks_sections_and_settings_of_one_file_are_never_averaged():
    (found,) = count(ROWS, ["llavamed-v1"])
    groups = {line.group: line.n for line in found.lines if line.kind == "closed"}
    assert groups == {"vqa-rad": 2, "slake": 2, "pathvqa": 1}
    twice = [replace(row, setting=name) for name in ("4 steps", "1 step") for row in ROWS[:1]]
    (found,) = count(twice, ["strict-v1"])
    assert [line.group for line in found.lines] == ["1 step, en", "4 steps, en"]


def test_the_table_says_what_is_left_out_where_a_code_ends_and_what_its_faults_do():
    told = table(count(ROWS, ["strict-v1", "medevalkit-rule:faithful", "vila-m3"]))
    assert "| strict-v1 1 | slake, zh | closed | accuracy | 1 | 1.000 (1.000 to 1.000) |" in told
    assert "9 rows, 1 empty answers, 1 that decline to answer." in told
    assert "it ends at 1 of the rows, the first is d (ValueError: Hypothesis is empty.)" in told
    assert "fault substring changes 2 rows: yes and no are looked for anywhere" in told
    assert "vila-m3 1: 2 left out: no closed item, and of VQA-RAD" in told
    assert "nan" not in json.dumps(as_json(count(ROWS, ["strict-v1"]))).lower()


def test_intervals_are_drawn_by_image_where_images_are_shared():
    rows = [
        Prediction(f"{image} {n}", truth="yes", answer="yes" if image % 2 else "no", image=str(image))
        for image in range(40)
        for n in range(25)
    ]
    (whole,) = (line for line in count(rows, ["strict-v1"])[0].lines)
    single = [Prediction(str(n), truth=row.truth, answer=row.answer) for n, row in enumerate(rows)]
    (apart,) = (line for line in count(single, ["strict-v1"])[0].lines)
    assert whole.value == apart.value == 0.5
    assert whole.high - whole.low > 3 * (apart.high - apart.low)
    assert (whole.clusters, apart.clusters) == (40, 0) and "say little" not in table(
        count(rows, ["strict-v1"])
    )
    few = table(count(rows[:50], ["strict-v1"]))
    assert "1 intervals are drawn by few patients or images, 2 at least: they say little." in few


@pytest.mark.parametrize("a", [*PROTOCOLS, "llavamed-v1:faithful", "medevalkit-rule:faithful"])
@pytest.mark.parametrize("b", ["strict-v1", "vila-m3:faithful", "medevalkit-rule:substring"])
def test_an_explanation_leads_all_the_way_from_one_number_to_the_other(a, b):
    told = explain(ROWS, a, b)
    one, other = score(ROWS, protocol(a)), score(ROWS, protocol(b))
    assert (told.n_start, told.n_end) == (len(one.values()), len(other.values()))
    means = [told.start, *(step.after for step in told.steps)]
    assert [step.before for step in told.steps] == pytest.approx(means[:-1], nan_ok=True)
    assert (told.start, means[-1]) == pytest.approx((one.mean(), other.mean()), nan_ok=True)
    changed = sum(x != y for x, y in zip(one.hits, other.hits, strict=True))
    assert sum(step.moves for step in told.steps) >= changed


def test_an_explanation_names_the_rules_and_the_rows_they_move():
    told = explain(ROWS, "medevalkit-rule:substring", "medevalkit-rule")
    (step,) = told.steps
    assert (step.rule, step.up, step.down) == ("medevalkit-rule without fault substring", 1, 1)
    assert [row[0] for row in step.examples] == ["a", "b"]
    text = told.table()
    assert "- a: truth 'no', answer 'normal': 1 -> 0" in text and "'normal' is a no" in text
    same = explain(ROWS, "strict-v1", "strict-v1")
    assert same.steps == [] and same.start == same.end
    assert "ends at 1 of these rows" in explain(ROWS, "medevalkit-rule:empty", "strict-v1").table()
    assert math.isnan(explain(ROWS[2:3], "vila-m3", "vila-m3:spaces").start)


class Asked:
    """A judge that says right to whatever holds a word, and counts how often it is asked."""

    model = "test-judge"

    def __init__(self, word: str, reply: str = "Right.") -> None:
        self.word, self.reply, self.prompts = word, reply, []

    def ask(self, prompts):
        self.prompts += prompts
        return [self.reply if self.word in prompt else "Wrong." for prompt in prompts]


def test_a_judge_decides_open_items_and_is_named():
    judge = Asked("left lung")
    found = judged(score(ROWS, protocol("medevalkit-rule")), judge)
    assert (
        found.hits[2] == 1.0 and found.hits[3] == 0.0 and found.judge == "test-judge, prompt same-meaning 1"
    )
    assert len(judge.prompts) == 3 and "True answer: left lung\nAnswer: the left lung" in judge.prompts[0]
    assert found.hits[8] == 1.0  # closed: by the rule


def test_short_answers_of_vlmevalkit_count_with_a_judge_only():
    bare = score(ROWS, protocol("vlmevalkit-mcq"))
    assert [hit is None for hit in bare.hits] == [True] * 6 + [False] + [True] * 2
    assert bare.why[0] == "a short answer, which a judge scores and nothing else"
    found = judged(score(ROWS, protocol("vlmevalkit-mcq:faithful")), Asked("yes"))
    assert found.stops == {} and found.hits[8] == 1.0 and None not in found.hits


def test_a_faithful_judge_counts_slake_twice_and_pathvqa_not_at_all():
    found = judged(score(ROWS, protocol("medevalkit-rule:judged-twice")), Asked("Question"))
    assert found.hits[5] == 2.0  # right by the rule, and right again
    assert found.hits[8] == 0.0  # closed, of PathVQA
    assert judged(score(ROWS, protocol("medevalkit-rule")), Asked("Question")).hits[5] == 1.0


def test_a_reply_that_cannot_be_read_counts_as_wrong():
    scored = score(ROWS, protocol("medevalkit-rule"))
    found = judged(scored, Asked("lung", reply="Maybe right, maybe wrong."))
    assert found.unparsed == 1 and found.hits[2] == 0.0
    assert len(found.values()) == len(scored.values())
    counts = count(ROWS, ["medevalkit-rule"], judge=Asked("lung", reply="?"))
    assert "1 replies could not be read and count as wrong" in table(counts)


@pytest.mark.parametrize(
    "read, right, wrong, neither",
    [
        (right_or_wrong, "Right.", "That is wrong", "right or wrong"),
        (zero_is_right, "<think>x</think><judge>0</judge>", "1", "<judge>2</judge>"),
        (
            begin_correctness, "[Begin Correctness]yes[End Correctness]",
            "[Begin Correctness] no [End Correctness]", "yes",
        ),
    ],
)  # fmt: skip
def test_replies_are_read_as_each_prompt_asks_for(read, right, wrong, neither):
    assert (read(right), read(wrong), read(neither), read("")) == (True, False, None, None)


def test_braces_in_an_answer_stay_what_they_are():
    prompt = JudgePrompt("p", "{question}|{truth}|{answer}", right_or_wrong)
    assert prompt.of("{truth}", "t", "{x} \\1") == "{truth}|t|{x} \\1"


def test_recorded_replies_give_the_same_numbers_offline(tmp_path):
    path, judge = tmp_path / "replies.jsonl", Asked("left lung")
    scored = score(ROWS, protocol("medevalkit-rule"))
    first = judged(scored, Recorder(judge, path))
    again = judged(scored, Recorder(judge, path))
    replayed = judged(scored, Replay(path))
    assert first.hits == again.hits == replayed.hits and len(judge.prompts) == 3
    assert replayed.judge == first.judge
    with pytest.raises(
        ValueError, match="replies.jsonl has no reply to 3 of 3 prompts, the first is number 1"
    ):
        judged(scored, Replay(path), JudgePrompt("other", "{answer}?", right_or_wrong))
    with pytest.raises(ValueError, match="none.jsonl is no file of replies"):
        Replay(tmp_path / "none.jsonl")
    path.write_text("{}\n")
    with pytest.raises(ValueError, match="line 1 is no recorded reply"):
        Replay(path)


def test_a_function_on_this_machine_may_judge():
    judge = LocalJudge("nano", lambda prompts: ["right"] * len(prompts))
    assert judged(score(ROWS, protocol("medevalkit-rule")), judge).hits[3] == 1.0


class Answers(http.server.BaseHTTPRequestHandler):
    """Plays an OpenAI-compatible endpoint that fails every other time."""

    seen: list[dict] = []

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append({"path": self.path, "key": self.headers.get("Authorization"), **body})
        fails = len(self.seen) % 2 == 1
        self.send_response(500 if fails else 200)
        self.end_headers()
        if not fails:
            said = "right" if "heart" in body["messages"][0]["content"] else "wrong"
            self.wfile.write(json.dumps({"choices": [{"message": {"content": said}}]}).encode())

    def log_message(self, *_):
        pass


def test_an_endpoint_is_asked_again_when_it_fails(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answers)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        judge = Endpoint(f"http://127.0.0.1:{server.server_port}/v1", "some-model", workers=1)
        found = judged(score(ROWS, protocol("medevalkit-rule")), judge)
    finally:
        server.shutdown()
        server.server_close()
    assert found.hits[3] == 1.0 and found.hits[2] == 0.0 and found.judge.startswith("some-model")
    assert Answers.seen[0]["path"] == "/v1/chat/completions" and Answers.seen[0]["key"] == "Bearer secret"
    assert Answers.seen[0]["temperature"] == 0 and len(Answers.seen) == 6
    with pytest.raises(ValueError, match="gave no reply for model 'some-model': check address"):
        judge.ask([SAME_MEANING.of("q", "t", "a")])
    with pytest.raises(ValueError, match="judge url is 'localhost', expected http"):
        Endpoint("localhost", "m")
