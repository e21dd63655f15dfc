"""Reaching a keeper that has to be started first, on a machine that takes its time."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from nagaya.engine import keeper
from nagaya.errors import Unavailable

SLOW = """
import socket, sys, time
with open(sys.argv[1] + "/starts", "a") as starts:
    starts.write("x")
time.sleep(0.5)
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1] + "/supervisor.sock")
listener.listen()
listener.accept()
"""


def test_one_that_starts_slowly_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no second is started beside it."""
    monkeypatch.setattr(keeper, "CONNECT", 0.1)
    command = [sys.executable, "-I", "-S", "-c", SLOW, str(tmp_path)]

    async def reach() -> None:
        (await keeper.reach_keeper(command, str(tmp_path))).close()

    asyncio.run(reach())
    assert (tmp_path / "starts").read_text() == "x"


def test_one_that_ends_is_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "CONNECT", 0.1)
    with pytest.raises(Unavailable, match="the supervisor does not answer"):
        asyncio.run(keeper.reach_keeper(["/bin/false"], str(tmp_path)))
