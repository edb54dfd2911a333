# SPDX-License-Identifier: Apache-2.0
"""`unimedvl evaluate --predictions FILE`: what each protocol counts in a file, and why two of them differ."""

from __future__ import annotations

import argparse
import csv
import io
import json
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from monai_unimedvl.cli.command import Result

TABLES = (".md", ".json", ".csv")


def add_options(verb: argparse.ArgumentParser) -> None:
    """The options of `evaluate` that score a prediction file and need no model."""
    group = verb.add_argument_group("scoring a prediction file", "no model is loaded; see docs/EVALUATION.md")
    group.add_argument(
        "--predictions", metavar="FILE", help="Parquet, JSON lines or CSV with columns id, truth, answer"
    )
    group.add_argument(
        "--protocols", nargs="+", metavar="NAME",
        help="such as strict-v1; medevalkit-rule:faithful has the faults of its code (default: all, without)",
    )  # fmt: skip
    group.add_argument(
        "--explain", nargs=2, metavar=("A", "B"), help="two protocols: which rule moves how many items"
    )
    group.add_argument(
        "--columns", nargs="+", metavar="THEIRS=OURS", help="columns of other names, as gt=truth pred=answer"
    )
    group.add_argument("--ignore", nargs="+", default=(), metavar="COLUMN", help="columns to leave out")
    group.add_argument("--items", type=int, help="rows that there must be; another number is an error")
    group.add_argument(
        "--where", nargs="+", default=(), metavar="COLUMN=VALUE", help="only these rows, as section=test"
    )
    group.add_argument("--details", action="store_true", help="further measures of each protocol")
    group.add_argument(
        "--judge",
        metavar="WHERE",
        help="http(s)://HOST/v1 (OpenAI's interface), or a file of recorded replies",
    )
    group.add_argument("--judge-model", metavar="ID", help="of the endpoint; its key is in OPENAI_API_KEY")
    group.add_argument("--judge-record", metavar="FILE", help="keep the replies here, to be replayed")
    group.add_argument("--judge-prompt", metavar="FILE", help="text with {question}, {truth} and {answer}")
    group.add_argument(
        "--judge-reads", choices=("words", "medevalkit", "vlmevalkit"), default="words",
        help="how the replies to --judge-prompt are read (default: the words right and wrong)",
    )  # fmt: skip
    texts = verb.add_argument_group("scoring reports", "rows whose answer_type is report")
    texts.add_argument("--labels", action="store_true", help="F1 of chest findings by plain keywords, too")
    texts.add_argument("--wordnet", metavar="FOLDER", help="with corpora/wordnet, for METEOR with synonyms")
    texts.add_argument(
        "--radeval",
        nargs="+",
        default=(),
        metavar="METRIC",
        help="radgraph, f1chexbert, green ... if installed",
    )
    texts.add_argument("--download", action="store_true", help="let RadEval fetch its models")


def evaluate_predictions(options: Namespace) -> Result:
    """Score a prediction file by protocols, or explain the difference between two."""
    from monai_unimedvl.atomic import write
    from monai_unimedvl.evaluation.counting import as_json, count, count_texts, table
    from monai_unimedvl.evaluation.explain import explain
    from monai_unimedvl.evaluation.labels import CHEST, Keywords
    from monai_unimedvl.evaluation.predictions import read_predictions
    from monai_unimedvl.evaluation.protocols import PROTOCOLS

    out = Path(options.out) if options.out else None
    if out is not None and out.suffix not in TABLES:
        raise ValueError(
            f"--out is {out.name!r}, expected a name that ends in {', '.join(TABLES)}: rename it."
        )
    if options.explain and (options.judge or options.protocols):
        raise ValueError("--explain takes two protocols and no judge: leave --judge and --protocols out.")
    rows = read_predictions(
        options.predictions,
        columns=pairs_of(options.columns or (), "--columns"),
        ignore=options.ignore,
        items=options.items,
    ).rows
    rows, chosen = chosen_rows(rows, pairs_of(options.where, "--where"))
    if options.explain:
        told = explain(rows, *options.explain)
        text, values = chosen + told.table(), told.as_json()
        cells = [[s.rule, s.entered, s.left, s.up, s.down, s.before, s.after] for s in told.steps]
        head = ["rule", "enter", "leave", "rise", "fall", "before", "after"]
    else:
        judge, prompt = _judge(options)
        asked = any(row.answer_type != "report" for row in rows)  # else there are reports only
        names = options.protocols or (list(PROTOCOLS) if asked else [])
        counts = count(rows, names, judge=judge, prompt=prompt, details=options.details, seed=options.seed)
        counts += count_texts(
            rows, labeller=Keywords(CHEST) if options.labels else None, wordnet=options.wordnet,
            metrics=options.radeval, download=options.download, seed=options.seed,
        )  # fmt: skip
        text, values = chosen + table(counts), {"protocols": as_json(counts)}
        head = ["protocol", "of", "kind", "measure", "n", "value", "low", "high"]
        cells = [
            [c.protocol, line.group, line.kind, line.measure, line.n, line.value, line.low, line.high]
            for c in counts
            for line in c.lines
        ]
        if options.details:
            text += "".join(_details(one.protocol, one.details) for one in counts)
    if out is not None:
        stream = io.StringIO()
        csv.writer(stream, lineterminator="\n").writerows([head, *cells])
        forms = {".md": text + "\n", ".json": json.dumps(values, ensure_ascii=False, indent=1) + "\n"}
        write(out, forms.get(out.suffix, stream.getvalue()))
        return [f"wrote {out}"], values
    return [text], values


def chosen_rows(rows: list[Any], wanted: dict[str, str]) -> tuple[list[Any], str]:
    """The rows with these values, and a line that says how many they are."""
    from monai_unimedvl.evaluation.predictions import COLUMNS

    if unknown := [name for name in wanted if name not in COLUMNS]:
        raise ValueError(f"--where has column {unknown[0]!r}, expected one of {', '.join(COLUMNS)}.")
    some = [row for row in rows if all(str(getattr(row, name)) == value for name, value in wanted.items())]
    told = ", ".join(f"{name} {value}" for name, value in wanted.items())
    if not some:
        raise ValueError(f"--where leaves none of {len(rows)} rows ({told}): choose other values.")
    return some, f"{len(some)} of {len(rows)} rows: {told}\n\n" if wanted else ""


def pairs_of(told: Any, option: str) -> dict[str, str]:
    """{NAME: VALUE} of words such as gt=truth; a `ValueError` names the option of one that is none."""
    found = {}
    for one in told:
        theirs, sign, ours = one.partition("=")
        if not (theirs and sign and ours):
            raise ValueError(f"{option} has {one!r}, expected NAME=VALUE, such as gt=truth: write it so.")
        found[theirs] = ours
    return found


def _judge(options: Namespace) -> tuple[Any, Any]:
    """The judge that was asked for, or None, and its prompt."""
    from monai_unimedvl.evaluation.protocols import judge

    prompt = judge.SAME_MEANING
    if options.judge_prompt:
        path = Path(options.judge_prompt)
        if not path.is_file() or "{answer}" not in (text := path.read_text("utf8")):
            raise ValueError(
                f"{path.name} is no prompt, expected a text with {{question}}, {{truth}}, {{answer}}."
            )
        prompt = judge.JudgePrompt(path.name, text, judge.READERS[options.judge_reads])
    if not options.judge:
        return None, prompt
    if not options.judge.startswith("http"):
        return judge.Replay(options.judge), prompt
    if not options.judge_model:
        raise ValueError("--judge is an endpoint without a model, expected --judge-model ID: name the model.")
    asked = judge.Endpoint(options.judge, options.judge_model)
    return (judge.Recorder(asked, options.judge_record) if options.judge_record else asked), prompt


def _details(name: str, details: dict[str, float]) -> str:
    told = ", ".join(f"{measure} {value:.3f}" for measure, value in details.items())
    return f"\n- {name}: {told}." if told else ""
