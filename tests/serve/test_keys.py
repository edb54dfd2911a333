# SPDX-License-Identifier: Apache-2.0
"""One rule of keys for every server here."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from monai_unimedvl.serve.keys import checked, read_key


def test_the_first_line_of_a_file_is_the_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("  0123456789abcdef \nwhat it is for\n")
    assert read_key(tmp_path / "key", "--key-file") == "0123456789abcdef"
    with pytest.raises(ValueError, match="--key-file none cannot be read as text: check the path"):
        read_key(tmp_path / "none", "--key-file")


BAD = ["", "0123456789abcde", "0123456789 abcdef", "0123456789äbcdefg", "0123456789\tabcdef"]


@pytest.mark.parametrize("key", BAD)
def test_what_can_be_tried_out_or_fits_no_header_is_no_key(key: str) -> None:
    said = (
        f"^KEY holds {len(key)} characters, but a key has 16 or more of ASCII, without blanks: make"
    )
    with pytest.raises(ValueError, match=said) as error:
        checked(key, "KEY")
    assert key == "" or key not in str(error.value), "a key is never said"


def test_the_rule_needs_none_of_the_packages_of_the_server() -> None:
    code = (
        "import sys\n"
        "for name in ('fastapi', 'starlette', 'pydantic', 'prometheus_client', 'torch'):\n"
        "    sys.modules[name] = None\n"
        "import monai_unimedvl.serve.keys\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
