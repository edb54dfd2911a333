# SPDX-License-Identifier: Apache-2.0
"""`unimedvl demo`: every task on held-out scans, drawn at random by seed, beside truth and baseline.

The scores are those of `evaluation`, on a few items; the page shows them and leaves out none of the failures.
"""

from __future__ import annotations

import platform
import re
import time
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from datetime import date
from pathlib import Path
from typing import Any

from monai_unimedvl import __version__, bundle, provenance
from monai_unimedvl.cli.cards import TICKS, card, description, drawing, edit
from monai_unimedvl.cli.command import Result
from monai_unimedvl.cli.reading import device
from monai_unimedvl.cli.stage import ABOUT, NAMES, SECTIONS, STEPS, TASKS, Item, Stage, score, scored, stands
from monai_unimedvl.cli.writing import writable
from monai_unimedvl.data.atlas import INSTRUCTIONS, LEGENDS
from monai_unimedvl.data.fetch import licences
from monai_unimedvl.evaluation import baselines as trivial
from monai_unimedvl.evaluation.page import SIGNS, Card, Figure, Section, against, markdown_tables, page
from monai_unimedvl.evaluation.text import exact_match, token_f1
from monai_unimedvl.inferers import ImageInferer, InterleavedInferer, TextInferer
from monai_unimedvl.inferers.drawing import Output
from monai_unimedvl.provenance import Facts

HISTORY = "History: headache for three weeks. Lab: CRP 4 mg/L."
FETCH = "`unimedvl data fetch-atlas`"
JOINT = r"(?s)<!-- joint -->(.*?)<!-- /joint -->"  # of a bundle's README


def demo(options: Namespace) -> Result:
    """Write index.html into the folder --out (default: demo), and its manifest."""
    start = time.monotonic()
    out = Path(options.out or "demo")
    path = out if out.suffix == ".html" else out / "index.html"
    if path.is_dir():
        raise ValueError(f"--out {path} is a folder, but a page is expected there: choose another name.")
    writable(path)
    network, tokenizer = bundle.load(options.model, device=device(options.device))
    stage = Stage(
        network, tokenizer, options.model, options.seed, options.cases, options.atlas, options.quiet
    )
    sections = every_section(stage)
    seconds = time.monotonic() - start
    html = page("What a small UniMedVL can and cannot do", lead(stage), sections, foot(stage, seconds))
    facts = Facts("demo", options.seed, bundle.digest(options.model), "demo", steps=STEPS)
    provenance.save_page(html, path, facts)
    head, *rows = glance(stage)
    scores = [dict(zip(head, row, strict=True)) for row in rows]
    values = {"outputs": [str(path)], "scores": scores, "missing": stage.missing, "seconds": round(seconds)}
    lines = [f"wrote {path} ({seconds:.0f} s): open it in a browser"]
    if stage.missing:
        lines.append(f"absent sources: {', '.join(stage.missing)}; `unimedvl data fetch-atlas` fetches them")
    return lines, values


def every_section(stage: Stage) -> list[Section]:
    """Everything between header and footer; a task without items is left out and named."""
    found = [at_a_glance(stage), questions(stage), unified(stage), descriptions(stage), drawings(stage)]
    found += [edits(stage, title, tasks) for title, tasks in TASKS.items()]
    found += [failures(stage), measured(stage), joint(stage), sources(stage)]
    return [section for section in found if section is not None]


def lead(stage: Stage) -> list[str]:
    """What the reader must know first."""
    size = sum(p.numel() for p in stage.network.parameters()) / 1e6
    absent = f" {len(stage.missing)} sources are absent here; {FETCH} fetches them." if stage.missing else ""
    return [
        (
            f"One network of {size:.1f} million parameters reads these scans, answers, describes, draws and"
            " edits. It was trained on public scans and templates at 64 x 64 pixels and has seen none of"
            " the slices below."
        ),
        (
            f"{stage.shown} cases of each task are drawn at random by the seed {stage.seed}, not chosen;"
            " the worst of each task stands under \u201cWhere it fails\u201d. \u25b2 is better than the best"
            f" baseline of that task, \u25bc is worse, = is as good to the digits shown.{absent}"
        ),
        "Pictures in a dashed frame are synthetic. Research software: nothing here is for diagnosis.",
    ]


def foot(stage: Stage, seconds: float) -> list[str]:
    """How the page came about."""
    about = stage.report.about
    return [
        (
            f"Made on {date.today().isoformat()} in {seconds:.0f} s by monai_unimedvl {__version__}"
            f" (torch {about['torch']}, Python {platform.python_version()}), seed {stage.seed},"
            f" weights sha256 {stage.hash[:16]}."
        ),
        (
            f"Edits: {STEPS} steps; drawings: {about['drawing']}. The manifest lies beside the page, and each"
            " synthetic picture holds its prompt, seed and hash of weights in its own PNG chunks."
        ),
    ]


def glance(stage: Stage) -> list[list[Any]]:
    """A row of scores for each task: over all items that were tried for this page."""
    rows: list[list[Any]] = [["task", "tested on", "score", "model", "best baseline", "ceiling", "items"]]
    wanted = ("exact match", "token F1", "contrast and plane", "Dice", "PSNR")
    best = {}
    order = list(NAMES)
    for row in sorted(stage.report.rows, key=lambda row: order.index(row.task)):
        if row.group != "all" or row.metric not in wanted or (row.task, row.section) in best:
            continue
        best[row.task, row.section] = row.metric
        name, value = row.baseline or ("none", float("nan"))
        shape = "{:.1f} dB" if row.metric == "PSNR" else "{:.2f}"
        good = against(row.value, value, shape)
        rows.append([
            NAMES[row.task], SECTIONS.get(row.section, row.section), row.metric,
            (f"{SIGNS[good]}{shape.format(row.value)}", good), f"{shape.format(value)} ({name})",
            "" if row.ceiling is None or row.ceiling != row.ceiling else shape.format(row.ceiling),
            str(row.n),
        ])  # fmt: skip
    return rows


def at_a_glance(stage: Stage) -> Section:
    """One table of scores."""
    return Section(
        "At a glance",
        "Means over the few items that were tried for this page, each task against its best trivial baseline."
        " With so few items they move by chance. \u25b2: above the baseline; \u25bc: below it; =: the same to"
        " the digits shown; ceiling: what the autoencoder, or the judge of drawings on real slices, reaches"
        " at best.",
        rows=glance(stage),
    )


def questions(stage: Stage) -> Section | None:
    """Some pictures, each with several questions."""
    asked: dict[str, list[Item]] = defaultdict(list)
    for item in stage.items.values():
        if item["task"] == "vqa":
            asked[item["id"].rsplit("/", 1)[0]].append(item)
    names = stage.some(sorted(asked), 2 * stage.shown)
    chosen = {name: stage.some(asked[name], 7) for name in names}
    flat = [item for items in chosen.values() for item in items]
    if not flat:
        return None
    infer = TextInferer(stage.tokenizer, max_new_tokens=24)
    said = iter(infer([item["turns"][0].parts for item in flat], stage.network))
    train = stage.bench.choose("train", "vqa", None)
    usual = trivial.majority(train, lambda item: str(item["question"]))
    cards, right = [], 0
    for items in chosen.values():
        rows: list[list[Any]] = [["question", "model", "truth", "usual answer"]]
        for item in items:
            answer = str(next(said))
            good = bool(exact_match(answer, item["truth"]))
            right += good
            mark = f"{TICKS[good]} {answer or '(nothing)'}"
            question = item["turns"][0].parts[-1]
            rows.append([question, (mark, good), item["truth"], usual.get(item["question"], "none")])
        cards.append(
            Card(
                stage.title(items[0]), [Figure(trivial.shown(items[0]), "input (real)")],
                rows=rows, credit=stage.credit(items[0]),
            )
        )  # fmt: skip
    return Section(
        "Questions",
        f"{right} of {len(flat)} answers below are right. \u201cUsual answer\u201d is what training says most"
        " often to that question, without looking at the picture.",
        cards,
    )


def descriptions(stage: Stage) -> Section | None:
    """Some pictures, each with the model's words and the true ones."""
    cards = [description(stage, found) for found in stage.shown_of("caption")]
    return Section(
        "Descriptions",
        "The truth is made of labels and masks, not written by a radiologist. Label F1 compares what the"
        " words say, decoded: contrast, plane, level, regions, tumour; word F1 counts shared words. The"
        " baseline is the most frequent description of training.",
        cards,
    ) if cards else None  # fmt: skip


def drawings(stage: Stage) -> Section | None:
    """Some drawings, each beside the real slice of the same words."""
    cards = [drawing(stage, found) for found in stage.shown_of("text-to-image")]
    return Section(
        "Drawn from words",
        "Beside each drawing stands the real held-out slice with the same words; they need not be the same"
        " picture. A small classifier, trained on real slices, names contrast, plane and level; \u2713 and"
        " \u25b2 go by contrast and plane. Baselines name the most frequent kind, or show the training image"
        " with the most similar words.",
        cards,
    ) if cards else None  # fmt: skip


def edits(stage: Stage, title: str, tasks: Sequence[str]) -> Section | None:
    """The cases of some tasks; tasks whose scans are absent are named."""
    cards = [edit(stage, found) for task in tasks for found in stage.shown_of(task)]
    absent = [task for task in tasks if not stage.of(task)]
    note = (
        f"Not here, because their scans are absent: {', '.join(NAMES[task] for task in absent)}. {FETCH}"
        " fetches them."
        if absent
        else ""
    )
    return Section(title, ABOUT[title], cards, note) if cards or note else None


def unified(stage: Stage) -> Section | None:
    """Scan, history and lab line -> findings, mask and a drawn follow-up image, in one context."""
    held = {task: {i["id"].split("/", 1)[1]: i for i in stage.items.values() if i["task"] == task} for task in
            ("caption", "seg-tissue", "t1-to-t2", "t1-to-gm")}  # fmt: skip
    follow = next((t for t in ("t1-to-t2", "t1-to-gm") if held[t].keys() & held["seg-tissue"].keys()), None)
    if follow is None:
        return None
    name = stage.some(sorted(held[follow].keys() & held["seg-tissue"].keys() & held["caption"].keys()), 1)[0]
    words, mask, later = held["caption"][name], held["seg-tissue"][name], held[follow][name]
    scan = trivial.shown(words)
    outputs: list[Output] = [("text", INSTRUCTIONS["caption"])]
    outputs += [("image", INSTRUCTIONS[task]) for task in ("seg-tissue", follow)]
    size = tuple(scan.shape[1:])
    infer = InterleavedInferer(
        stage.tokenizer, outputs=outputs, steps=STEPS, size=size, seed=stage.seed, max_new_tokens=160
    )
    findings, *drawn = infer([[scan, HISTORY]], stage.network)[0]
    alone = ImageInferer(stage.tokenizer, steps=STEPS, size=size, seed=stage.seed)(
        [item["turns"][0].parts for item in (mask, later)], stage.network
    )
    figures, lines = [Figure(scan, "input (real)")], [("given", f"{HISTORY} (made up)")]
    f1 = token_f1(str(findings), words["truth"])
    lines += [("findings", f"{findings} (word F1 {f1:.2f})"), ("truth", words["truth"])]
    for item, image, apart in zip((mask, later), drawn, alone, strict=True):
        metric = "Dice" if item is mask else "PSNR"
        value, other = (score(item, x) for x in (image, apart))
        guesses = {name: score(item, draw(item)) for name, draw in stage.fitted(item["task"]).items()}
        best = max(guesses, key=lambda key: guesses[key]) if guesses else ""
        label = "mask" if item is mask else "follow-up, drawn"
        words_asked = str(item["turns"][0].parts[-1])
        facts = Facts(words_asked, stage.seed, stage.hash, item["task"], steps=STEPS)
        good = stands(metric, value, guesses[best]) if best else None
        figures += [
            Figure(image, label, scored(metric, value), good, facts),
            Figure(item["truth"], "truth (real)", f"{best} {scored(metric, guesses[best])}" if best else ""),
        ]
        lines.append((label, f"asked alone, without the rest of the case: {scored(metric, other)}"))
    card = Card(
        stage.title(words),
        figures,
        lines,
        credit=stage.credit(words),
        legend=LEGENDS["seg-tissue"],
        wide=True,
    )
    return Section(
        "One unified case",
        "One `InterleavedInferer` context reads the scan with a short history and a lab line, then writes the"
        f" findings, draws the mask and a follow-up image ({NAMES[follow]}). Each step reads those before it."
        " The model was trained to draw after histories that mean nothing, answers and other drawings: what"
        " their company costs here stands in the last lines.",
        [card],
    )


def failures(stage: Stage) -> Section:
    """The worst case of each task, of all held-out items where the evaluation of these weights is at hand."""
    cards, wholes = [], 0
    for task in NAMES:
        found, whole = stage.worst(task)
        if found is not None:
            wholes += whole
            cards.append(card(stage, found))
    rows: list[list[Any]] = [["question", "model", "truth"]]
    for found in [one for one in stage.of("vqa") if not one["scores"]["exact match"]][: 3 * stage.shown]:
        question = stage.items[found["id"]]["turns"][0].parts[-1]
        rows.append([question, (found["said"] or "(nothing)", False), found["truth"]])
    wrongs = [Card("Wrong answers", rows=rows)] if len(rows) > 1 else []
    if cards and wholes == len(cards):
        among = "all held-out items, by the evaluation that came with these weights, drawn again here"
    elif wholes:
        among = f"all held-out items for {wholes} tasks, and for the others of those tried for this page"
    else:
        among = "the items tried for this page"
    return Section(
        "Where it fails",
        f"The worst case of each task, of {among}: drawings by their distance to the best baseline (at"
        " \u25bc a method without a model did better), answers by how sure a wrong one was, descriptions by"
        " their labels, drawings from words by what was recognised. Then more answers that are wrong.",
        [*cards, *wrongs],
    )


def measured(stage: Stage) -> Section | None:
    """The tables in the bundle's papers."""
    tables = markdown_tables(re.sub(JOINT, "", paper(stage)))
    return Section(
        "Measured", "All held-out items, with 95 % intervals: the table that comes with these weights.",
        markdown=tables,
    ) if tables else None  # fmt: skip


def joint(stage: Stage) -> Section | None:
    """Joint against separate training, where the bundle's papers have the comparison."""
    found = re.search(JOINT, paper(stage))
    about, _, table = (found[1] if found else "").strip().partition("\n\n")
    tables = markdown_tables(table)
    return Section("Reading and drawing, together or apart", about, markdown=tables) if tables else None


def paper(stage: Stage) -> str:
    """The README of the bundle, empty where it has none."""
    file = bundle.find(stage.model) / "docs" / "README.md"
    return file.read_text("utf8") if file.is_file() else ""


def sources(stage: Stage) -> Section:
    """Packages, licences, and which are absent."""
    rows: list[list[Any]] = [["package", "version", "licence", "used for", "here"]]
    rows += [[*row, "absent" if row[0] in stage.missing else "yes"] for row in licences()]
    note = (
        f"Absent sources are fetched by {FETCH}; nothing of them is in this project." if stage.missing else ""
    )
    return Section(
        "Where the scans come from",
        "Public packages, read where they lie. Pictures of GPL sources are on this page only because you made"
        " it from your own copy; mind their licence if you pass it on.",
        rows=rows, note=note,
    )  # fmt: skip
