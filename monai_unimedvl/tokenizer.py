# SPDX-License-Identifier: Apache-2.0
"""Text <-> ids, and the four control marks; on the `tokenizers` engine that transformers' fast ones use.

The one thing to know: `encode` never gives the id of a mark. A mark written in a user's text, such as
`<|im_end|>`, is read as the characters it consists of, so no text can end its own turn or open an image.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers
from tokenizers import Tokenizer as Engine
from torch import Tensor

from monai_unimedvl.sequence import Marks

MARKS = ("<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>")  # in the order of `Marks`

# How Qwen2 cuts text before pairs are merged: contractions, words, single digits, signs, line ends, spaces.
WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# Qwen2.5's added tokens in the order of their ids, from 151643 on: for folders that hold only vocab.json and
# merges.txt, where adding only the marks would give them other numbers.
QWEN_VOCABULARY = 151_643
QWEN_SPECIAL = (
    "<|endoftext|> <|im_start|> <|im_end|> <|object_ref_start|> <|object_ref_end|> <|box_start|> <|box_end|>"
    " <|quad_start|> <|quad_end|> <|vision_start|> <|vision_end|> <|vision_pad|> <|image_pad|> <|video_pad|>"
).split()
QWEN_PLAIN = (
    "<tool_call> </tool_call> <|fim_prefix|> <|fim_middle|> <|fim_suffix|> <|fim_pad|> <|repo_name|>"
    " <|file_sep|>"
).split()


class Tokenizer:
    """Words to ids and back.

    Args:
        engine: a `tokenizers.Tokenizer`, or a fast tokenizer of transformers, which holds one. Marks that
            it lacks are added at its end and named in `added`: the embedding needs `len(tokenizer)` rows.
    """

    def __init__(self, engine: Any) -> None:
        self.engine: Engine = getattr(engine, "backend_tokenizer", engine)
        if not isinstance(self.engine, Engine):
            raise ValueError(
                f"Tokenizer got a {type(engine).__name__}, expected a tokenizers.Tokenizer or a fast one of "
                "transformers: load one, or use Tokenizer.load(folder)."
            )
        self.added = tuple(mark for mark in MARKS if self.engine.token_to_id(mark) is None)
        self.engine.add_special_tokens([AddedToken(mark, normalized=False, special=True) for mark in MARKS])
        ids = self.engine.get_vocab(with_added_tokens=True)
        self.marks = Marks(*(ids[mark] for mark in MARKS))
        self._length = max(ids.values()) + 1
        self._as_text()

    def __len__(self) -> int:
        """One more than the largest id: the rows that an embedding needs at least."""
        return self._length

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self._as_text()  # the engine's switches are lost in a copy, for example in a data loader's worker

    def _as_text(self) -> None:
        self.engine.encode_special_tokens = True  # marks inside a text are characters
        self.engine.no_truncation()
        self.engine.no_padding()

    def digest(self) -> str:
        """sha256 of which id is which word: weights that were trained with it know no other."""
        words = self.engine.get_vocab(with_added_tokens=True)
        return hashlib.sha256(json.dumps(sorted(words.items())).encode()).hexdigest()

    def encode(self, text: str) -> Tensor:
        """Ids of a text, without marks around it and never with one inside: LongTensor (n,).

        Raises:
            ValueError: `text` is no string, or holds half a surrogate pair.
        """
        if not isinstance(text, str):
            raise ValueError(f"Tokenizer.encode got a {type(text).__name__}, expected str: pass one text.")
        try:
            ids = self.engine.encode(text, add_special_tokens=False).ids
        except TypeError as error:
            raise ValueError(
                "Tokenizer.encode got text with half a surrogate pair: decode its bytes as UTF-8 first."
            ) from error
        assert not set(self.marks) & set(ids), "a mark came out of plain text"
        return torch.tensor(ids, dtype=torch.long)

    def decode(self, ids: Tensor | Iterable[int], *, keep_marks: bool = False) -> str:
        """The text of ids (n,). Marks and other special tokens are left out unless `keep_marks`.

        Bytes that are no whole character yet come out as U+FFFD.
        """
        return self.engine.decode([int(i) for i in ids], skip_special_tokens=not keep_marks)

    @classmethod
    def load(cls, folder: str | Path) -> Tokenizer:
        """The tokenizer in a folder: tokenizer.json, or Qwen2's vocab.json and merges.txt.

        The ids that tokenizer_config.json (or added_tokens.json) declares for added tokens are kept, whatever
        the order in which a library would add them; building `Qwen2Tokenizer(vocab, merges)` misnumbers them.

        Raises:
            ValueError: no tokenizer there, a file that cannot be read, or declared ids that do not fit.
        """
        folder = Path(folder)
        if (folder / "tokenizer.json").is_file():
            engine = _read(folder / "tokenizer.json", lambda file: Engine.from_file(str(file)))
        else:
            engine = _read_qwen(folder)
        declared = _declared(folder)
        if not declared and engine.get_vocab_size(with_added_tokens=True) == QWEN_VOCABULARY:
            names = [(name, True) for name in QWEN_SPECIAL] + [(name, False) for name in QWEN_PLAIN]
            declared = {QWEN_VOCABULARY + i: name for i, name in enumerate(names)}
        for i, (name, special) in sorted(declared.items()):
            if engine.token_to_id(name) is None:
                token = AddedToken(name, normalized=False, special=special)
                (engine.add_special_tokens if special else engine.add_tokens)([token])
            if engine.token_to_id(name) != i:
                raise ValueError(
                    f"The tokenizer in {folder.name} declares {name} as id {i}, but it comes out as "
                    f"{engine.token_to_id(name)}: take all tokenizer files from one model."
                )
        return cls(engine)

    def save(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json; transformers' AutoTokenizer reads them too."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        self.engine.save(str(folder / "tokenizer.json"))
        start, end, *vision = MARKS
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": start,
            "eos_token": end,
            "extra_special_tokens": vision,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", "utf8")

    @classmethod
    def train(cls, texts: Iterable[str], size: int) -> Tokenizer:
        """A byte-level BPE of at most `size` ids, marks and the 256 bytes included, learnt from `texts`.

        Digits stand alone, white space is kept, nothing is normalised: any text comes back as it was.

        Raises:
            ValueError: `size` does not even hold the marks and the bytes.
        """
        alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
        least = len(MARKS) + len(alphabet)
        if size < least:
            raise ValueError(
                f"Tokenizer.train got size={size}, the marks and bytes alone take {least}: raise size."
            )
        engine = _engine(models.BPE())
        trainer = trainers.BpeTrainer(
            vocab_size=size,
            min_frequency=2,
            initial_alphabet=alphabet,
            special_tokens=[AddedToken(mark, normalized=False, special=True) for mark in MARKS],
            show_progress=False,
        )
        engine.train_from_iterator(texts, trainer)
        return cls(engine)


def _engine(model: models.BPE) -> Engine:
    """A byte-level engine that cuts words as Qwen2 does."""
    engine = Engine(model)
    engine.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    engine.decoder = decoders.ByteLevel()
    return engine


def _read_qwen(folder: Path) -> Engine:
    """The engine of vocab.json and merges.txt, without added tokens."""
    vocabulary, merges = folder / "vocab.json", folder / "merges.txt"
    gone = [file.name for file in (vocabulary, merges) if not file.is_file()]
    if gone:
        raise ValueError(
            f"{folder.name} has no tokenizer.json and no {' or '.join(gone)}: copy the tokenizer files there."
        )
    model = _read(merges, lambda file: models.BPE.from_file(str(vocabulary), str(file)))
    engine = _engine(model)
    engine.normalizer = normalizers.NFC()
    return engine


def _read(file: Path, read: Any) -> Any:
    try:
        return read(file)
    except Exception as error:  # the engine raises bare Exception
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{file.name} cannot be read as a tokenizer ({reason}): fetch it again.") from error


def _declared(folder: Path) -> dict[int, tuple[str, bool]]:
    """id -> (token, special) of the added tokens as the config files declare them."""
    found: dict[int, tuple[str, bool]] = {}
    plain, config = folder / "added_tokens.json", folder / "tokenizer_config.json"
    if plain.is_file():
        for name, i in _read(plain, lambda file: json.loads(file.read_text("utf8"))).items():
            found[int(i)] = (name, name in MARKS or name in QWEN_SPECIAL)
    if config.is_file():
        content = _read(config, lambda file: json.loads(file.read_text("utf8")))
        for i, token in content.get("added_tokens_decoder", {}).items():
            found[int(i)] = (token["content"], bool(token.get("special", False)))
    return found
