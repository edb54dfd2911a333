# SPDX-License-Identifier: Apache-2.0
"""Dialogues as LLaVA and ShareGPT have them: {"image": "a.png", "conversations": [{"from", "value"}, ...]}.

Also the later form {"images": [...], "messages": [{"role", "content"}, ...]}. Words of a system open the
first human turn; `<image>` marks stay where they stand.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from monai_unimedvl.data.ingest.listed import IngestRows, listed
from monai_unimedvl.data.record import PLACEHOLDER, InvalidRecord, Message, Record

SPEAKERS = {
    "human": "human", "user": "human", "gpt": "gpt", "assistant": "gpt", "model": "gpt", "chatgpt": "gpt",
    "system": "system",
}  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class IngestConversations(IngestRows):
    """LLaVA and ShareGPT JSON or JSON lines."""

    name: ClassVar[str] = "ingest-conversations"
    about: ClassVar[str] = "LLaVA and ShareGPT JSON: dialogues about images, or without"
    example: ClassVar[str] = (
        "llava_med.json --images images/ --out corpus --dataset llava-med --modality xray"
    )

    def row(self, row: Mapping[str, Any], file: int) -> Iterator[Record]:
        """One dialogue."""
        turns = row.get("conversations") or row.get("messages")
        if not isinstance(turns, list) or not turns:
            raise InvalidRecord("empty-text", "a row has no conversations, expected a list of turns.")
        message = list(self._turns(turns))
        named = listed(row.get("image")) + listed(row.get("images"))
        images = tuple(self.picture(each) for each in named)
        if not any(turn.speaker == "gpt" and turn.value for turn in message):
            raise InvalidRecord("empty-text", "a dialogue has no answer, expected one.")
        if not images and any(PLACEHOLDER in turn.value for turn in message):
            raise InvalidRecord("placeholders", f"a dialogue speaks of {PLACEHOLDER} but names no image.")
        words = [f"{turn.speaker}: {turn.value}" for turn in message]
        yield self.record(
            ([image.path for image in images], words), input_img=images, message=tuple(message),
            main_task_type="image-to-text" if images else "text", sub_task_type="dialogue",
            provenance={"message": {"by": "source"}},
        )  # fmt: skip

    def _turns(self, turns: list[Any]) -> Iterator[Message]:
        before: list[str] = []
        for turn in turns:
            if not isinstance(turn, Mapping):
                raise InvalidRecord("bad-row", "a turn is no object, expected from and value.")
            who = SPEAKERS.get(str(turn.get("from") or turn.get("role") or "").lower())
            said = turn.get("value") if "value" in turn else turn.get("content")
            if isinstance(said, list):  # pieces of text and image
                said = " ".join(
                    PLACEHOLDER if piece.get("type") in ("image", "image_url") else str(piece.get("text", ""))
                    for piece in said
                    if isinstance(piece, Mapping)
                )
            if who is None or not isinstance(said, str):
                raise InvalidRecord("bad-row", "a turn has no known speaker or no text, expected both.")
            words = self.text(said, "a turn")
            if who == "system":
                before.append(words)
            elif who == "human":
                yield Message("human", "\n\n".join([*before, words]))
                before = []
            else:
                yield Message("gpt", words)
