# SPDX-License-Identifier: Apache-2.0
"""The end of a build: shards of what was kept, and the papers beside them; the manifest comes last.

manifest.json   what `check_shards` reads, and steps, sources, licences, patients, checksums of the papers
rejects.jsonl   all that was left out, in the order of parts
card.md, croissant.json, report.html
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from monai_unimedvl.atomic import new_file, write
from monai_unimedvl.data.card import card, croissant
from monai_unimedvl.data.files import write_json
from monai_unimedvl.data.jobs import REJECTS, TALLY, WEIGHTS, Job, decided, part_name, read_lines
from monai_unimedvl.data.leaks import LeakReport, leaks_of
from monai_unimedvl.data.licences import refuse_for_commerce
from monai_unimedvl.data.plan import Pipeline
from monai_unimedvl.data.record import Reject
from monai_unimedvl.data.run_report import report_page
from monai_unimedvl.data.shards import FORMAT, MANIFEST
from monai_unimedvl.provenance.facts import sha256

PAPERS = ("card.md", "croissant.json", "report.html", REJECTS)


def finish(
    work: Path, out: Path, pipeline: Pipeline, *, passes: Sequence[int], parts: int, absent: Sequence[str],
    settings: Mapping[str, Any], do: Callable[[Sequence[Job], str], None], keep_work: bool,
) -> dict[str, Any]:  # fmt: skip
    """Write shards and papers, and remove the parts; returns the manifest.

    Args:
        passes: number of decisions after each pass. parts: of a pass.
        do: runs jobs, with a word for the progress bar.

    Raises:
        ValueError: nothing was kept, or a licence forbids what was asked for.
    """
    last = len(passes) - 1
    plan = list(_plan(work, last, passes[last], parts, int(settings["max_bytes"])))
    told = {each.name: getattr(pipeline, each.name) for each in fields(pipeline)}
    if not plan:
        counts = _rejected(_steps(work, passes, parts))
        reasons = ", ".join(f"{code} {n}" for code, n in counts.items())
        mend = "report it, and run again once that is mended" if "unexpected" in counts else ""
        raise ValueError(
            f"nothing was kept of what the sources hold ({reasons}): {mend or 'loosen the steps'}."
        )
    leaks = any(each.get("step") == "split" for each in pipeline.steps)
    jobs: list[Job] = [
        {"kind": "shard", "name": f"shard-{number:05d}", "work": str(work), "out": str(out), "before": last,
         "decisions": passes[last], "rows": rows, "leaks": leaks}
        for number, rows in enumerate(plan)
    ]  # fmt: skip
    do(jobs, "shards")
    manifest = _manifest(work, [job["name"] for job in jobs])
    steps = _steps(work, passes, parts)
    manifest |= {
        "rejected": _rejected(steps), "steps": steps, "absent": list(absent), "pipeline": pipeline.digest
    }  # fmt: skip
    if settings["commercial"]:
        refuse_for_commerce(manifest["licences"])
    _join_rejects(work, out, passes, parts)
    report = _leaks(work, jobs) if leaks else None
    manifest["leaks"] = None if report is None else report.to_json()
    write(out / "card.md", card(manifest, told, report.lines() if report else ()))
    write(out / "croissant.json", json.dumps(croissant(manifest, told), indent=2, ensure_ascii=False) + "\n")
    write(out / "report.html", report_page(manifest, told, out))
    manifest["papers"] = {
        name: {"bytes": path.stat().st_size, "sha256": sha256(path)}
        for name in PAPERS if (path := out / name).is_file()
    }  # fmt: skip
    for name in ("characters", "sides", "examples"):
        manifest.pop(name)
    write_json(out / MANIFEST, manifest)
    if not keep_work:
        shutil.rmtree(work)
    return manifest


def _plan(work: Path, last: int, decisions: int, parts: int, max_bytes: int) -> Iterator[list[list[int]]]:
    """For each shard its rows: [part, first, stop] pieces; a shard ends with the record that fills it."""
    rows: list[list[int]] = []
    filled = 0
    for part in range(parts):
        weights = json.loads((work / f"pass-{last}" / part_name(part) / WEIGHTS).read_text())
        first, alive = 0, 0
        kept = _kept(work, last, decisions, part, len(weights))
        for row, (weight, here) in enumerate(zip(weights, kept, strict=True)):
            filled, alive = filled + weight * here, alive + here
            if filled >= max_bytes and here:
                yield [*rows, [part, first, row + 1]]
                rows, filled, first, alive = [], 0, row + 1, 0
        if alive:
            rows.append([part, first, len(weights)])
    if rows:
        yield rows


def _kept(work: Path, last: int, decisions: int, part: int, count: int) -> Iterator[bool]:
    """Of each record of a part whether no decision has left it out."""
    said = [read_lines(work / f"verdicts-{last}-{n}" / f"{part_name(part)}.jsonl") for n in range(decisions)]
    for _, *rows in zip(range(count), *said, strict=True):
        yield not any(row and "code" in row for row in rows)


def _manifest(work: Path, names: Sequence[str]) -> dict[str, Any]:
    """What the shards hold, added up."""
    added: dict[str, Counter] = {}
    shards: list[dict[str, Any]] = []
    histograms: dict[str, list[int]] = {}
    patients: dict[str, set[str]] = {}
    examples: dict[str, list[Any]] = {}
    for name in names:
        told = json.loads((work / "shards" / f"{name}.json").read_text("utf8"))
        shards.append(told["shard"])
        for key, table in {
            **told["counts"],
            "sources": told["sources"],
            "words_by": told["words_by"],
            "told_by": told["told_by"],
        }.items():
            added.setdefault(key, Counter()).update(table)
        for key in ("characters", "sides"):
            before = histograms.get(key, [0] * len(told[key]))
            histograms[key] = [a + b for a, b in zip(before, told[key], strict=True)]
        for split, owners in told["patients"].items():
            patients.setdefault(split, set()).update(owners)
        for key, row in told["examples"].items():
            examples.setdefault(key, [name, row])
    tables = {key: dict(sorted(table.items())) for key, table in added.items()}
    return {
        "format": FORMAT, "records": sum(shard["rows"] for shard in shards), "rejected": {}, "shards": shards,
        "licences": tables.pop("licence"), "sources": tables.pop("sources"),
        "words_by": tables.pop("words_by"), "patients_told_by": tables.pop("told_by"),
        "counts": tables, "patients": {split: len(owners) for split, owners in sorted(patients.items())},
        **histograms, "examples": examples,
    }  # fmt: skip


def _steps(work: Path, passes: Sequence[int], parts: int) -> list[dict[str, Any]]:
    """The tallies of all steps, in their order, added over the parts; each adds up."""
    found: list[dict[str, Any]] = []
    for number, decisions in enumerate(passes):
        added: dict[tuple[int, str], dict[str, Any]] = {}
        for part in range(parts):
            told = json.loads((work / f"pass-{number}" / part_name(part) / TALLY).read_text())
            for place, (name, counts) in enumerate(told["steps"]):
                last = place == len(told["steps"]) - 1
                _add(added.setdefault((999 if last else place, name), {}), counts)
        ordered = sorted(added, key=lambda key: key[0])  # sources stay as they were named
        found += [{"step": name, **added[place, name]} for place, name in ordered]
        for place in range(decisions):
            told = json.loads((work / f"verdicts-{number}-{place}" / TALLY).read_text())
            found.append(told)
    for each in found:
        assert each["in"] == each["kept"] + each["rejected"], f"step {each['step']} lost a unit: {each}"
        each["reasons"] = dict(sorted(each["reasons"].items()))
    return [each for each in found if each["step"] not in ("check", "unique-ids") or each["rejected"]]


def _add(total: dict[str, Any], counts: Mapping[str, Any]) -> None:
    for name, value in counts.items():
        if name == "reasons":
            total[name] = dict(Counter(total.get(name, {})) + Counter(value))
        else:
            total[name] = total.get(name, 0) + value


def _rejected(steps: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Rejects by code."""
    return dict(sorted(sum((Counter(step["reasons"]) for step in steps), Counter()).items()))


def _join_rejects(work: Path, out: Path, passes: Sequence[int], parts: int) -> None:
    """All rejects in one file: of each pass those of its steps, then those of its decisions."""
    with new_file(out / REJECTS) as rejects, rejects.open("w", encoding="utf8") as stream:
        for number, decisions in enumerate(passes):
            for part in range(parts):
                stream.write((work / f"pass-{number}" / part_name(part) / REJECTS).read_text("utf8"))
                if not (work / f"verdicts-{number}-0").is_dir():
                    continue
                for item in decided(work, number, part, decisions):
                    if isinstance(item, Reject):
                        row = json.dumps(item.to_json(), ensure_ascii=False, separators=(",", ":"))
                        stream.write(row + "\n")


def _leaks(work: Path, jobs: Sequence[Job]) -> LeakReport:
    """The report of leaks, of the rows that the shards' jobs left."""
    return leaks_of(row for job in jobs for row in read_lines(work / "shards" / f"{job['name']}.leaks.jsonl"))
