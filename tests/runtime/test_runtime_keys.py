"""Keys of the caller stay out of the container: its programs have a session keyring of their own
(session-keyring(7))."""

from __future__ import annotations

import subprocess
import sys

import pytest
from bundles import Bundle

pytestmark = pytest.mark.root

# a session keyring that only who possesses it can see, then the command in it
_CALLER = """
import ctypes, os, sys
libc = ctypes.CDLL(None, use_errno=True)
KEYCTL, JOIN, SETPERM = 250, 1, 5
key = libc.syscall(KEYCTL, JOIN, b"nagt-callers", 0, 0, 0)
assert key > 0 and libc.syscall(KEYCTL, SETPERM, key, 0x3F000000, 0, 0) == 0
os.execvp(sys.argv[1], sys.argv[1:])
"""


def keys(box: Bundle, *verb: str) -> str:
    """/proc/keys as a program in the container sees it, whose runtime was called with a keyring."""
    argv = [sys.executable, "-c", _CALLER, *box.argv(*verb)]
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout


def test_keys_of_the_caller_are_out_of_reach(box: Bundle) -> None:
    box.spec["linux"]["maskedPaths"] = []
    box.spec["process"]["args"] = ["cat", "/proc/keys"]
    box.save()
    said = keys(box, "run", "--bundle", str(box.path), box.id)
    assert f"_ses.{box.id}" in said and "nagt-callers" not in said
    box.start("sleep", "100")
    said = keys(box, "exec", box.id, "cat", "/proc/keys")
    assert f"_ses.{box.id}" in said and "nagt-callers" not in said
