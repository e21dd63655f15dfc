"""Broken JSON, read by an interpreter as the launchers start it: without the public module."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[2] / "src"
CODE = """
import sys; sys.path.append(sys.argv[1])
from nagaya.linux.json import loads
from nagaya.errors import InvalidArgument
assert "json" not in sys.modules
try:
    print(loads(sys.argv[2]))
except InvalidArgument as error:
    print("refused:", error)
"""


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('{"a": [1, "b"]}', "{'a': [1, 'b']}"),
        ('{"a": 1 "b": 2}', "line 1 column 9"),
        ('{"a"', "line 1 column 5"),
        ('{"a', "line 1 column 2"),
        ("{a: 1}", "line 1 column 2"),
        ("[1,]", "line 1 column 4" if sys.version_info < (3, 13) else "line 1 column 3"),  # the comma
        ('{"a": "\\q"}', "line 1 column 8"),
        ("", "line 1 column 1"),
        ("{} {}", "more text after the value at line 1 column 3"),
        ("[" * 100000, "nested too deeply"),
    ],
)
def test_broken_text_is_refused_with_its_place(text: str, says: str) -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CODE, str(SOURCE), text], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert says in done.stdout
