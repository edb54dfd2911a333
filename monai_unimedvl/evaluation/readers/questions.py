# SPDX-License-Identifier: Apache-2.0
"""Questions with short answers: VQA-RAD, SLAKE, PathVQA."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from monai_unimedvl.evaluation.readers.base import (
    Item,
    Picture,
    folder_of,
    json_rows,
    parquet_rows,
    present,
    shards,
)

ORGANS = {"HEAD": "brain", "CHEST": "chest", "ABD": "abdomen"}  # of VQA-RAD
MODALITIES = {"x-ray": "xray", "ct": "ct", "mri": "mri"}  # of SLAKE
OSF = "VQA_RAD Dataset Public.json"


def vqa_rad(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """VQA-RAD as the Hub has it (data/test-*.parquet), or as OSF has it (its JSON and image folder).

    The Hub's table has no types; OSF's says which questions are closed.
    """
    if (root / OSF).is_file():
        items = []
        for row in json_rows(
            root / OSF, ("qid", "image_name", "question", "answer", "answer_type", "phrase_type")
        ):
            if row["phrase_type"].startswith("test") == (section == "test"):
                answer_type = str(row["answer_type"]).strip().lower()
                items.append(
                    Item(
                        str(row["qid"]), str(row["question"]), str(row["answer"]).strip(),
                        answer_type=answer_type if answer_type in ("closed", "open") else "",
                        question_type=str(row.get("question_type", "")),
                        anatomy=ORGANS.get(str(row.get("image_organ", "")), ""), image=str(row["image_name"]),
                        groups={"phrase": str(row["phrase_type"])},
                        pictures=(Picture(root / "VQA_RAD Image Folder" / str(row["image_name"])),),
                    )
                )  # fmt: skip
        return present(items, root)
    folder_of(root, "data/*.parquet", "*.parquet", "**/*.parquet", OSF)
    return _hub(root, section)


def pathvqa(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """PathVQA as the Hub has it: data/test-*.parquet, three files."""
    folder_of(root, "data/*.parquet", "*.parquet", "**/*.parquet")
    items, missing = _hub(root, section)
    return [replace(item, modality="histopathology") for item in items], missing


def slake(root: Path, section: str, language: str = "") -> tuple[list[Item], list[str]]:
    """SLAKE: test.json and imgs/; English and Chinese, or one of them."""
    name = "validate" if section == "validation" and (root / "validate.json").is_file() else section
    folder_of(root, f"{name}.json")
    items = []
    needed = ("qid", "img_name", "question", "answer", "q_lang", "answer_type")
    for row in json_rows(root / f"{name}.json", needed):
        if language in ("", row["q_lang"]):
            items.append(
                Item(
                    str(row["qid"]), str(row["question"]), str(row["answer"]),
                    answer_type=str(row["answer_type"]).strip().lower(), language=str(row["q_lang"]),
                    question_type=str(row.get("content_type", "")),
                    modality=MODALITIES.get(str(row.get("modality", "")).lower(), ""),
                    anatomy=str(row.get("location", "")), image=str(row["img_name"]),
                    groups={"base": str(row.get("base_type", ""))},
                    pictures=(Picture(root / "imgs" / str(row["img_name"])),),
                )
            )  # fmt: skip
    return present(items, root)


def _hub(root: Path, section: str) -> tuple[list[Item], list[str]]:
    """A table of the Hub with columns image, question, answer."""
    files, missing = shards(root, section)
    if not files:
        return [], [f"data/{section}-*.parquet"]
    items = []
    rows = parquet_rows(files, ("image", "question", "answer"))
    for number, (row, picture, name) in enumerate(rows):
        question, answer = str(row["question"]), str(row["answer"]).strip()
        items.append(Item(f"{section}-{number:05d}", question, answer, pictures=(picture,), image=name))
    return items, missing
