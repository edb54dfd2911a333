# SPDX-License-Identifier: Apache-2.0
"""Two cards filled from a run: the model card of the Hugging Face Hub, and MI-CLAIM-GEN's checklist.

What a run knows is filled in; what only people know (consent, intended users, reviewers) stands there as a
question, so that nobody takes an empty line for an answer. MI-CLAIM-GEN: Miao et al. 2024, arXiv 2403.02558.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import yaml

from monai_unimedvl import __version__
from monai_unimedvl.evaluation.tables import ALL, Row, markdown, number, short

if TYPE_CHECKING:
    from monai_unimedvl.evaluation.report import Report

ASK = "**To be filled in by the authors:**"
GATES = {  # what the audit counts: heading, and in words
    "copies": ("copies", "of the drawings are nearer to a training image than real images are"),
    "ratio": ("nearest / second", "is the median ratio of nearest to second-nearest distance"),
    "memorised": ("nearer to training", "of the drawings are nearer to training than to held-out images"),
    "reidentified": ("lead back", "of the drawings lead back to the patient they were drawn for"),
}
TAGS = ["medical", "monai", "vision-language", "image-generation", "unimedvl", "not-for-diagnosis"]
KINDS = {"vqa": "visual-question-answering", "caption": "image-to-text", "text-to-image": "text-to-image"}


def hub_card(report: Report, name: str, told: Sequence[str]) -> str:
    """The model card as Markdown with the Hub's front matter, its `model-index` filled with the scores.

    Args:
        told: warnings of the run.
    """
    about = report.about
    front = {
        "license": "apache-2.0", "language": ["en"], "library_name": "monai", "tags": TAGS,
        "pipeline_tag": "image-text-to-text",
        "model-index": [{"name": name, "results": _results(report)}],
    }  # fmt: skip
    parts = [
        f"---\n{yaml.safe_dump(front, sort_keys=False, allow_unicode=True)}---",
        f"# {name}",
        "UniMedVL (arXiv 2510.15710) for MONAI: one network that reads and draws medical images and text."
        f" This card was filled by a run of `unimedvl evaluate` (monai_unimedvl {__version__}).",
        "## Intended use",
        "Research on models that read and draw medical images. It is no medical device; nothing it says or"
        " draws is for diagnosis, treatment or training of people. What it draws is marked as synthetic.",
        f"{ASK} who is meant to use it, on which patients and machines, and who must not.",
        "## Training data",
        f"{ASK} sources, consent, licences, periods, places and demographics of the training data.",
        "## Evaluation",
        _how(about),
        markdown(row for row in short(report.rows) if row.group == ALL),
        str(about.get("notes", "")),
        "## Known failures and limits",
        "UniMedVL's paper tells invented overlay text, shifted structures and devices in edits, and weak"
        " counting, severity, image quality and surgical action. In this run:",
        "\n".join(f"- {line}" for line in told)
        or "- no slice of 20 items or more lies wholly below the mean.",
        "## Privacy audit",
        _audit(about),
        "## Reproducing the numbers",
        f"Weights sha256 `{about.get('weights', 'unknown')}`, items sha256 `{about.get('items', 'unknown')}`,"
        f" seed {about.get('seed')}, torch {about.get('torch', 'unknown')}. The same command gives the same"
        " numbers to the last digit on the same machine.",
    ]
    return "\n\n".join(parts) + "\n"


def mi_claim_gen(report: Report, name: str, told: Sequence[str]) -> str:
    """The MI-CLAIM-GEN card as Markdown: what the run answers, and what its authors must."""
    about = report.about
    drawn = any(row.task == "text-to-image" for row in report.rows)
    baselines = sorted({one for row in report.rows for one in row.baselines})
    lines = "left_out" in about  # no Parquet without pyarrow
    file, prompt = ("predictions.jsonl", "asked") if lines else ("predictions.parquet", "prompt")
    parts: list[tuple[str, list[tuple[str, str]]]] = [
        ("1. Study design", [
            ("Question and setting", f"{ASK} the clinical problem and where the model would be used."),
            ("Cohorts", f"{_how(about)} {ASK} how patients were chosen, and whom they stand for."),
            ("Baselines", f"Beside every score: {', '.join(baselines) or 'none'}. {ASK} the usual care."),
            ("Labels", f"{ASK} who made the ground truth, from what, and how well readers agree."),
        ]),
        ("2. Data, models and resources", [
            ("Model", f"{name}, {_count(about)} parameters, weights sha256"
             f" `{about.get('weights', 'unknown')}`."),
            ("Separation", "Items scored are held out from training by section: "
             f"{_list(about.get('sections'))}."
             + (" Baselines and the judge were fitted on training items alone." if baselines else "") +
             f" {ASK} whether test data can lie in the pretraining of any part."),
            ("Inputs and outputs", f"Tasks: {_list(about.get('tasks'))}."),
            ("Prompts", f"Stored with every prediction (`{prompt}` in {file})."),
        ]),
        ("3. Optimisation and choice of the final model", [
            ("Training", f"{ASK} hyperparameters, hardware, and how the checkpoint was chosen."),
            ("Decoding", f"Text: greedy. Edits in {_list(about.get('edit_steps'))} steps; from words:"
             f" {about.get('drawing', 'none')}. Seed {about.get('seed')}."),
        ]),
        ("4. Evaluation", [
            ("Automatic scores", f"{len(report.predictions)} predictions, 95 % bootstrap intervals, by"
             " image where several questions are asked about one; see model_card.md and table.csv."),
            ("Calibration", "Reliability, risk against coverage and refuse thresholds: index.html."),
            ("Human evaluation", f"{ASK} readers, instructions, agreement; none is part of this run."),
            ("Significance", "Intervals of each score; paired tests of two runs by `evaluation.compare`."),
        ]),
        ("5. Examination", [
            ("Errors", "\n".join(["Worst, middle, best items: index.html.", *(f"  - {x}" for x in told)])),
            ("Bias", "Slices by modality, anatomy, question type and known failures: slices.csv."
             f" {ASK} slices by sex, age, ethnicity and site, which this run does not know."),
            ("Harm", "Drawings are marked as synthetic in file and manifest."
             f" {ASK} foreseeable misuse and what prevents it."),
            ("Privacy", _indented(_audit(about)) if drawn else "No images were drawn from words."),
            ("Security", f"{ASK} prompt injection and access to the deployed model."),
        ]),
        ("6. Reproducibility", [
            ("Code", f"monai_unimedvl {__version__}, Apache-2.0; torch {about.get('torch', 'unknown')}."),
            ("Predictions", f"{file}: one row an item with prompt, seed and scores."),
            ("Data", f"{ASK} who can get the data. Items sha256 `{about.get('items', 'unknown')}`."),
            ("Tier", f"{ASK} 1 all shared, 2 a third party evaluates, 3 virtual machine, 4 none."),
        ]),
    ]  # fmt: skip
    text = [
        f"# MI-CLAIM-GEN card of {name}",
        "Filled by the run where it knows; the rest is marked. After the checklist of Miao et al. (2024).",
    ]
    for title, rows in parts:
        text.append(f"## {title}")
        text += [f"- *{item}.* {answer}" for item, answer in rows]
    return "\n\n".join(text) + "\n"


def open_questions(card: str) -> int:
    """How many answers of a card are still to be given by people."""
    return len(re.findall(re.escape(ASK), card))


def _results(report: Report) -> list[dict[str, Any]]:
    """`model-index` of the Hub: each task and section a data set."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in short(report.rows):
        if row.group == ALL:
            found.setdefault((row.task, row.section), []).append(row)
    benchmark = str(report.about.get("benchmark", "own data"))
    return [
        {
            "task": {"type": KINDS.get(task, "image-to-image"), "name": task},
            "dataset": {"type": benchmark, "name": f"{benchmark} {section}", "split": section},
            "metrics": [
                {
                    "type": row.metric, "name": f"{row.metric} (95 %: {number(row.metric, row.low)} to "
                    f"{number(row.metric, row.high)}, n {row.n})", "value": round(row.value, 6),
                }
                for row in rows
            ],
        }
        for (task, section), rows in found.items()
    ]  # fmt: skip


def _how(about: Mapping[str, Any]) -> str:
    limit = about.get("limit")
    items = "every held-out item" if limit is None else f"{limit} held-out items of each task or question"
    return f"Scored on {about.get('benchmark', 'own data')}, {_list(about.get('sections'))}: {items}."


def _audit(about: Mapping[str, Any]) -> str:
    audits: Mapping[str, Any] = about.get("audits") or {}
    if not audits:
        return "Not done: too few images were drawn from words, or none."
    lines = []
    for section, found in audits.items():
        lines.append(f"- {section}: gate **{found['verdict']}** ({'; '.join(found['why'])}).")
        for key, (_, words) in GATES.items():
            if share := found.get(key):
                beside = "" if share["reference"] is None else f"; beside it {share['reference']:.3f}"
                lines.append(f"  - {share['value']:.3f} {words}{beside}")
    return "\n".join(lines)


def _indented(text: str) -> str:
    return "\n" + "\n".join(f"  {line}" for line in text.splitlines())


def _count(about: Mapping[str, Any]) -> str:
    found = about.get("parameters")
    return "an unknown number of" if found is None else f"{found:,}"


def _list(values: Any) -> str:
    if not isinstance(values, list | tuple):
        return str(values or "unknown")
    return ", ".join(map(str, values)) or "none"
