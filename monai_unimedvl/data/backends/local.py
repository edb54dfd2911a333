# SPDX-License-Identifier: Apache-2.0
"""Transformers models in folders of this machine: a dual encoder as scorer, an image-text-to-text writer.

Nothing is fetched and no code of a folder is run. A folder without an image tower (E5 and its like) scores
texts only, by the mean of its last hidden states.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from monai_unimedvl.data.backends import picture_of

OFFLINE = {"local_files_only": True, "trust_remote_code": False}
QUERY = "query: "  # that E5 models expect before each text


class _Local:
    """A folder of transformers' as model and processor, read when they are asked for first.

    Raises:
        ValueError: no such folder.
    """

    kind: ClassVar[str]  # of transformers' automatic classes

    def __init__(self, folder: str | Path, *, device: str = "cpu") -> None:
        self.folder, self.device = checked(folder), device
        self.name = name_of(self.folder)

    @functools.cached_property
    def model(self) -> Any:
        """The model."""
        import transformers

        return _loaded(getattr(transformers, self.kind), self.folder).to(self.device)

    @functools.cached_property
    def processor(self) -> Any:
        """Of images and texts, or the tokenizer alone."""
        from transformers import AutoProcessor

        return _loaded(AutoProcessor, self.folder, model=False)


class LocalScorer(_Local):
    """SigLIP- and CLIP-like models, and text encoders. Cosines are moved from [-1, 1] to [0, 1].

    Args:
        folder: config.json, weights, tokenizer and image processor.

    Raises:
        ValueError: no such folder.
    """

    kind = "AutoModel"

    def image_text(self, image: Tensor, texts: Sequence[str]) -> list[float]:
        """See `Scorer`.

        Raises:
            ValueError: the model has no image tower.
        """
        if not hasattr(self.model, "get_image_features"):
            raise ValueError(f"model {self.name} has no image tower, expected a dual encoder: name another.")
        with torch.inference_mode():
            given = self.processor(images=picture_of(image), return_tensors="pt").to(self.device)
            shown = _features(self.model.get_image_features(pixel_values=given["pixel_values"]))
            return _scores(shown, self._texts(texts))

    def text_text(self, text: str, others: Sequence[str]) -> list[float]:
        """See `Scorer`."""
        with torch.inference_mode():
            first, rest = self._texts([text]), self._texts(others)
            return _scores(first, rest)

    def _texts(self, texts: Sequence[str]) -> Tensor:
        """(N, D)"""
        tokenizer = getattr(self.processor, "tokenizer", self.processor)
        length = getattr(self.model.config, "text_config", self.model.config).max_position_embeddings
        dual = hasattr(self.model, "get_text_features")
        words = list(texts) if dual else [QUERY + text for text in texts]
        # SigLIP was trained with texts filled up to its length, CLIP with the longest of a batch
        fill = "max_length" if "siglip" in str(self.model.config.model_type) else True
        given = tokenizer(words, return_tensors="pt", padding=fill, truncation=True, max_length=length)
        given = {k: v.to(self.device) for k, v in given.items() if k in ("input_ids", "attention_mask")}
        if dual:
            return _features(self.model.get_text_features(**given))
        hidden = self.model(**given).last_hidden_state  # (N, T, D)
        mask = given["attention_mask"].unsqueeze(-1)
        return (hidden * mask).sum(1) / mask.sum(1)


class LocalWriter(_Local):
    """Any image-text-to-text model with a chat template; without an image it answers words with words.

    Args:
        folder: config.json, weights and processor.
        max_tokens: of an answer.

    Raises:
        ValueError: no such folder.
    """

    kind = "AutoModelForImageTextToText"

    def __init__(self, folder: str | Path, *, device: str = "cpu", max_tokens: int = 512) -> None:
        super().__init__(folder, device=device)
        self.max_tokens = max_tokens

    def write(self, prompt: str, image: Tensor | None = None, *, count: int = 1, seed: int = 0) -> list[str]:
        """See `Writer`; one answer is the likeliest, several are drawn at temperature 0.7."""
        content: list[dict[str, Any]] = [{"type": "text", "text": prompt}]
        if image is not None:
            content.insert(0, {"type": "image"})
        asked = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], add_generation_prompt=True, tokenize=False
        )
        shown = {} if image is None else {"images": [picture_of(image)]}
        given = self.processor(text=[asked], return_tensors="pt", **shown).to(self.device)
        said = []
        for number in range(count):
            with torch.inference_mode(), torch.random.fork_rng():
                torch.manual_seed(seed + number)
                chance = {"do_sample": True, "temperature": 0.7} if count > 1 else {"do_sample": False}
                ids = self.model.generate(**given, max_new_tokens=self.max_tokens, **chance)
            fresh = ids[0, given["input_ids"].shape[1] :]
            said.append(self.processor.decode(fresh, skip_special_tokens=True).strip())
        return said


def checked(folder: str | Path) -> Path:
    """A folder with a model.

    Raises:
        ValueError: it is none.
    """
    path = Path(folder)
    if not (path / "config.json").is_file():
        raise ValueError(
            f"{path} holds no config.json, expected a folder with a transformers model: check it."
        )
    return path


def name_of(folder: Path) -> str:
    """The model's name as its config has it, else the folder's; never a path."""
    try:
        config = json.loads((folder / "config.json").read_text("utf8"))
    except (OSError, ValueError) as error:
        raise ValueError(
            f"{folder.name}/config.json is no JSON, expected a model's: copy it again."
        ) from error
    named = str(config.get("_name_or_path") or "")
    return named.rstrip("/").split("/")[-1] or folder.name


def _loaded(kind: Any, folder: Path, model: bool = True) -> Any:
    try:
        found = kind.from_pretrained(folder, **OFFLINE)
    except Exception as error:  # transformers raises many kinds for folders that are not whole
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        raise ValueError(
            f"{folder.name} cannot be loaded ({reason}), expected a whole model folder: copy it again."
        ) from error
    return found.eval() if model else found


def _features(found: Any) -> Tensor:
    """(N, D) of what `get_*_features` gives: a tensor, or an output that holds it."""
    features: Tensor = found if isinstance(found, Tensor) else found.pooler_output
    return features


def _scores(one: Tensor, several: Tensor) -> list[float]:
    """(1, D), (N, D) -> cosines in [0, 1]"""
    cosines = torch.nn.functional.cosine_similarity(one.float(), several.float())
    return [float(score) for score in ((1 + cosines) / 2).clamp(0, 1)]
