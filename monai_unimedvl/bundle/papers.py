# SPDX-License-Identifier: Apache-2.0
"""The papers of bundles: scores out of a saved report, and the list of what the weights were trained on."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from monai_unimedvl.atomic import write
from monai_unimedvl.bundle import places
from monai_unimedvl.bundle.places import DEFAULT, find, metadata
from monai_unimedvl.data.fetch import licences

if TYPE_CHECKING:
    from monai_unimedvl.evaluation import Report

DATA_LICENCES = """
The data that the model was trained on, and under which terms it came. Written by
monai_unimedvl.bundle.write_data_licences from the list that `unimedvl data fetch-atlas` reads.

No image of these sources is in this folder but those of samples/, named there. The sources were read from the
packages below; averages and slices of them were shown to the network as 64 x 64 pictures. Two variants are
trained: configs/pretrain.json of unimedvl_nano reads every source, configs/pretrain_permissive.json leaves
out those under the GPL.
"""


def write_data_licences(folder: str | Path | None = None) -> Path:
    """Write `docs/data_license.txt`: every source of the training data with version, licence and use.

    The versions are those that this machine would train with.

    Args:
        folder: a bundle; None is the default one, whose list all shipped bundles share.
    """
    free = {name for name, *_ in licences(permissive_only=True)}
    lines = [DATA_LICENCES.strip(), ""]
    for name, version, licence, used in licences():
        mark = "both variants" if name in free else "not in the permissive-only variant"
        lines += [f"{name} {version}", f"  licence:  {licence}", f"  used for: {used}", f"  read by:  {mark}"]
        lines += [""]
    file = find(folder or places.DEFAULT) / "docs" / "data_license.txt"
    write(file, "\n".join(lines))
    return file


def document(report: str | Path, path: str | Path = DEFAULT, marker: str = "scores") -> Path:
    """Put the scores of a saved report into the papers of every bundle with these weights.

    They are README, `eval_metrics` and, of `path` itself, docs/MARKER.json: all rows, and the worst items of
    each task, for whoever compares or shows them. In a checkout the project's own README is filled too.

    Args:
        report: the folder that `evaluate(out=...)` wrote.
        path: the bundle whose weights were scored. With a shipped one go those that name it in `weights_of`,
            each with the rows of its own `tasks`.
        marker: of the place in docs/README.md, between `<!-- scores -->` and `<!-- /scores -->`. A bundle
            without that place is left alone, unless it is `path` itself.

    Returns:
        the README of `path`.

    Raises:
        ValueError: no report there, or no such place in the README.
    """
    from monai_unimedvl.evaluation import Report, fill  # slow to import: only who writes papers pays

    found = Report.load(report)
    _document(found, find(path), marker)
    _keep(found, find(path), marker)
    if find(path).resolve().parent == places.BUNDLES.resolve():
        for name in places.available():
            folder = places.BUNDLES / name
            if metadata(folder).get("weights_of") == find(path).resolve().name:
                if f"<!-- {marker} -->" in (folder / "docs" / "README.md").read_text("utf8"):
                    _document(found, folder, marker)
        readme = places.BUNDLES.parent / "README.md"
        if readme.is_file() and f"<!-- {marker} -->" in readme.read_text("utf8"):
            fill(readme, marker, found.table(groups=False))
    return find(path) / "docs" / "README.md"


def scores(marker: str = "scores", path: str | Path = DEFAULT) -> Report | None:
    """The report that `document` filled in, without its items, or None; the worst are in `about["worst"]`."""
    from monai_unimedvl.evaluation import Report, Row

    file = find(path) / "docs" / f"{marker}.json"
    if not file.is_file():
        return None
    said = json.loads(file.read_text("utf8"))
    return Report([Row(**row) for row in said["rows"]], [], said["about"])


def _keep(report: Report, folder: Path, marker: str) -> None:
    """Write the rows of a report, one a line, and the worst items of each task."""
    from monai_unimedvl.evaluation.examples import worst_of

    about = {name: said for name, said in report.about.items() if name not in ("audits", "warnings")}
    about["worst"] = worst_of(report.predictions)
    rows = ",\n".join(json.dumps(asdict(row), ensure_ascii=False) for row in report.rows)
    text = f'{{"about": {json.dumps(about, ensure_ascii=False, indent=1)},\n"rows": [\n{rows}\n]}}\n'
    write(folder / "docs" / f"{marker}.json", text)


def _document(report: Report, folder: Path, marker: str) -> None:
    """One bundle's papers: the rows of its tasks, of all tasks where its metadata names none."""
    from monai_unimedvl.evaluation import Report, fill

    content = metadata(folder)
    tasks = content.get("tasks")
    rows = [row for row in report.rows if tasks is None or row.task in tasks]
    fill(folder / "docs" / "README.md", marker, Report(rows, [], report.about).table(groups=False))
    if marker == "scores":
        content["eval_metrics"] = {
            ", ".join(filter(None, [row.task, row.metric, row.section, row.setting])): round(row.value, 4)
            for row in rows
            if row.group == "all"
        }
        text = json.dumps(content, indent=4, ensure_ascii=False) + "\n"
        write(folder / "configs" / "metadata.json", text)
