# SPDX-License-Identifier: Apache-2.0
"""What may be the key of a server: the one rule for `unimedvl serve` and for the MONAI Label app.

Only the standard library is imported: MONAI Label's environment has nothing of the extra `serve`.
"""

from __future__ import annotations

from pathlib import Path

LEAST = 16  # characters; fewer can be tried out


def checked(key: str, where: str) -> str:
    """The key without blanks around it.

    Args:
        where: it came from, as the message begins: "--key-file key.txt".

    Raises:
        ValueError: it is too short, or no header of HTTP can hold it.
    """
    key = key.strip()
    if len(key) < LEAST or not all("!" <= character <= "~" for character in key):
        raise ValueError(
            f"{where} holds {len(key)} characters, but a key has {LEAST} or more of ASCII, without blanks: "
            "make one with `openssl rand -hex 32`."
        )
    return key


def read_key(path: str | Path, option: str) -> str:
    """The key in the first line of a file.

    Args:
        option: that names the file.

    Raises:
        ValueError: as `checked`, or the file cannot be read.
    """
    path = Path(path)
    try:
        text = path.read_text("utf8")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{option} {path.name} cannot be read as text: check the path.") from error
    return checked(next(iter(text.splitlines()), ""), f"{option} {path.name}")
