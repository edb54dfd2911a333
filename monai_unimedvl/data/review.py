# SPDX-License-Identifier: Apache-2.0
"""Expert review: a form that opens from a file, the readers' answers back, and a page of what came out.

    unimedvl data review form corpus --out form.html --count 200
    unimedvl data review summary form.html alice.json bob.json --out summary.html

The form is one HTML file with its pictures inside: no server, no network. It keeps what is typed in the
browser's own store and gives it back as JSON.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from monai_unimedvl.atomic import write
from monai_unimedvl.data.agreement import DIMENSIONS, Review, agreement
from monai_unimedvl.data.boxes import outlined
from monai_unimedvl.data.dialogue import read_content
from monai_unimedvl.data.record import PLACEHOLDER, Record, Reject
from monai_unimedvl.data.run_report import picture, render

FORMAT = "unimedvl-review 1"
WIDTH = 512  # pixels of a picture on the form
STRATA = ("modality", "sub_task_type", "dataset", "split")


def sample(
    records: Iterable[Record | Reject], count: int, *, by: str = "modality", seed: int = 0
) -> list[Record]:
    """Some records, as equally shared out among the strata as their numbers allow, in a mixed order.

    Args:
        records: where the step `review-sample` has marked some, only these are taken.
        by: field whose values are the strata.

    Raises:
        ValueError: no such field, or no record.
    """
    if by not in STRATA or count < 1:
        raise ValueError(
            f"review got by={by!r} and count={count}, expected one of {', '.join(STRATA)} and 1 on."
        )
    held: dict[str, list[tuple[str, Record]]] = defaultdict(list)
    marked = False
    for record in records:
        if not isinstance(record, Record) or (marked and not record.facts.get("review")):
            continue
        if record.facts.get("review") and not marked:  # the step review-sample has chosen
            marked = True
            held.clear()
        drawn = hashlib.sha256(f"{seed} {record.id}".encode()).hexdigest()
        stratum = held[getattr(record, by)]
        stratum.append((drawn, record))
        if len(stratum) > 2 * count:  # a large corpus does not lie in memory
            stratum.sort(key=lambda pair: pair[0])
            del stratum[count:]
    queues = [sorted(stratum, key=lambda pair: pair[0]) for _, stratum in sorted(held.items())]
    chosen: list[tuple[str, Record]] = []
    for turn in range(count):
        chosen += [queue[turn] for queue in queues if turn < len(queue)]
    if not chosen:
        raise ValueError("there is no record to review, expected some: check the path.")
    return [record for _, record in sorted(chosen[:count], key=lambda pair: pair[0])]


def write_form(
    records: Sequence[Record], path: str | Path, *, title: str = "Review", root: str | Path | None = None
) -> str:
    """Write the form; returns its id, by which answers find back to it.

    Args:
        root: folder of the images, where they are not embedded.

    Raises:
        InvalidRecord: a picture that cannot be read.
    """
    items = [_item(record, root) for record in records]
    form = hashlib.sha256(json.dumps(items, sort_keys=True).encode()).hexdigest()[:16]
    told = {"format": FORMAT, "form": form, "title": title, "items": items, "dimensions": _dimensions()}
    page = render(
        "review.html", title=title, form=form, items=items, dimensions=_dimensions(), told=_script(told)
    )
    write(Path(path), page)
    return form


def read_form(path: str | Path) -> dict[str, Any]:
    """Title, id and items of a form.

    Raises:
        ValueError: it is none.
    """
    path = Path(path)
    text = path.read_text("utf8") if path.is_file() else ""
    found = re.search(r'<script type="application/json" id="told">(.*?)</script>', text, re.DOTALL)
    if not found:
        raise ValueError(f"{path.name} is no form, expected the page that `unimedvl data review form` wrote.")
    told: dict[str, Any] = json.loads(found.group(1))
    return told


def read_review(path: str | Path) -> Review:
    """The answers of one reader, as the form exports them.

    Raises:
        ValueError: no such file, or a rating that the form cannot give.
    """
    path = Path(path)
    try:
        told = json.loads(path.read_text("utf8"))
        right = told["format"] == FORMAT and isinstance(told["reader"], str) and told["reader"].strip()
        ratings = {str(item): dict(rated) for item, rated in told["ratings"].items()}
        comments = {str(item): str(words) for item, words in told.get("comments", {}).items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path.name} is no review, expected what the form exports: check the file."
        ) from error
    if not right:
        raise ValueError(
            f"{path.name} is no review with a reader's name, expected the form's JSON: export it."
        )
    for rated in ratings.values():
        for name, value in rated.items():
            largest, step, _ = DIMENSIONS.get(name, (0, 1, ""))
            number = value if isinstance(value, int | float) and not isinstance(value, bool) else -1
            if not 0 <= number <= largest or abs(number / step - round(number / step)) > 1e-9 or not largest:
                raise ValueError(
                    f"{path.name} rates {name!r} with {value!r}, expected 0 to {largest or 5} in steps of "
                    f"{step:g}: export the form again."
                )
    return Review(told["reader"].strip(), str(told["form"]), ratings, comments)


def write_summary(form: str | Path, reviews: Sequence[Review], path: str | Path) -> dict[str, Any]:
    """Write the page of what readers said, with the pictures of the form; returns the numbers.

    Raises:
        ValueError: no review, one of another form, or nothing rated.
    """
    told = read_form(form)
    if not reviews:
        raise ValueError("there is no review, expected one or more: export them from the form.")
    for review in reviews:
        if review.form != told["form"]:
            raise ValueError(
                f"the review of {review.reader!r} is of another form: name the one they filled in."
            )
    found = agreement(reviews)
    rows = []
    for item in told["items"]:
        id, every, spread = item["id"], [], []
        for name, (largest, _, _) in DIMENSIONS.items():
            values = [r.ratings[id][name] / largest for r in reviews if name in r.ratings.get(id, {})]
            every += values
            spread.append(max(values) - min(values) if values else 0.0)
        said = [
            {"reader": r.reader, "rated": r.ratings.get(id, {}), "comment": r.comments.get(id, "")}
            for r in reviews
        ]
        score = sum(every) / len(every) if every else None
        rows.append({**item, "said": said, "score": score, "spread": max(spread)})
    rows.sort(key=lambda row: (row["score"] is None, row["score"], row["id"]))  # the worst first
    names = list(DIMENSIONS)
    write(
        Path(path), render("review_summary.html", title=told["title"], found=found, items=rows, names=names)
    )
    return found


def _item(record: Record, root: str | Path | None) -> dict[str, Any]:
    """What the form shows of a record: nothing of the patient."""
    shown = [picture(read_content(image, root), WIDTH) for image in record.input_img]
    drawn = [picture(read_content(image, root), WIDTH) for image in record.output_img]
    return {
        "id": record.id, "task": record.sub_task_type, "modality": record.modality,
        "contrast": str(record.facts.get("contrast", "")), "shown": shown, "drawn": drawn,
        "words": [[message.speaker, _read(message.value)] for message in record.message],
        "outlined": outlined(record),
    }  # fmt: skip


def _read(value: str) -> str:
    """Words for a reader: the pictures stand above them, so their marks say nothing."""
    return value.replace(f"{PLACEHOLDER} ", "").replace(PLACEHOLDER, "").strip()


def _dimensions() -> list[dict[str, Any]]:
    """Name, what is asked, and the ratings to choose from."""
    return [
        {"name": name, "asked": asked, "levels": [n * step for n in range(round(largest / step) + 1)]}
        for name, (largest, step, asked) in DIMENSIONS.items()
    ]


def _script(told: Mapping[str, Any]) -> str:
    """JSON that may stand inside a page, whatever the words are."""
    text = json.dumps(told, ensure_ascii=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
