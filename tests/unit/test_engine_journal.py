"""Ledger and journal: transactions, versions, and what a crash leaves."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from house import python_main

from nagaya.engine.journal import Journal
from nagaya.engine.ledger import Ledger, Volume
from nagaya.engine.model import Container, ContainerConfig, Endpoint, MountSpec, Resources, Step
from nagaya.errors import AlreadyExists, FailedPrecondition, KernelError


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "ledger.db")


def container(name: str = "one", created: int = 1) -> Container:
    config = ContainerConfig(
        "busybox", command=("sh",), resources=Resources(memory=1 << 20), mounts=(MountSpec("tmpfs", "/x"),)
    )
    return Container(
        name.ljust(64, "f"),
        name,
        config,
        created=created,
        endpoints=(Endpoint("bridge"),),
    )


def test_rows_survive_reopening(path: str) -> None:
    ledger = Ledger(path)
    steps = (Step("engine", "start", "", 1, 2),)
    ledger.put_container(container("two", 2))
    ledger.put_container(container("one", 1), trace=steps)
    ledger.put_container(container("one", 1))  # the steps stay
    ledger.put_volume(Volume("v", 5, True, {"a": "b"}))
    ledger.close()
    ledger = Ledger(path)
    assert ledger.containers() == [container("one", 1), container("two", 2)]
    assert ledger.trace(container("one").id) == steps
    assert ledger.trace("unknown") == ()
    assert ledger.volume("v") == Volume("v", 5, True, {"a": "b"})
    assert ledger.volumes() == [Volume("v", 5, True, {"a": "b"})]
    ledger.delete_volume("v")
    ledger.delete_container(container("one").id)
    assert ledger.volume("v") is None
    assert [c.name for c in ledger.containers()] == ["two"]
    ledger.close()


def test_a_row_of_a_past_that_had_fewer_fields_is_read(path: str) -> None:
    ledger = Ledger(path)
    with ledger.write() as db:
        db.execute(
            "INSERT INTO containers(id, name, state, document) VALUES('i','n','exited',?)",
            ('{"id":"i","name":"n","config":{"image":"x"},"field_of_tomorrow":1}',),
        )
    assert ledger.containers() == [Container("i", "n", ContainerConfig("x"))]
    ledger.close()


def test_a_transaction_is_all_or_nothing(path: str) -> None:
    ledger = Ledger(path)
    with pytest.raises(ZeroDivisionError), ledger.write():
        ledger.put_container(container())
        ledger.put_volume(Volume("v", 1, False))
        raise ZeroDivisionError
    assert ledger.containers() == []
    assert ledger.volumes() == []
    ledger.put_container(container())
    with pytest.raises(AlreadyExists):
        ledger.put_container(Container("another", "one", ContainerConfig("x")))
    assert [c.id for c in ledger.containers()] == [container().id]
    ledger.close()


def test_many_threads_write(path: str) -> None:
    ledger = Ledger(path)
    journal = Journal(ledger)

    def work(number: int) -> None:
        for turn in range(20):
            operation = journal.begin("create", f"{number}-{turn}")
            with ledger.write():
                ledger.put_container(container(f"c{number}x{turn}"))
                journal.done(operation)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(ledger.containers()) == 160
    assert journal.pending() == []
    ledger.close()


def test_operations_are_pending_until_done(path: str) -> None:
    ledger = Ledger(path)
    journal = Journal(ledger)
    seen: list[str] = []
    journal.failpoint = seen.append
    first = journal.begin("create", "a", {"volumes": ["v"]})
    second = journal.begin("start", "b")
    found = journal.pending()
    assert [(o.number, o.kind, o.subject, o.data) for o in found] == [
        (first, "create", "a", {"volumes": ["v"]}),
        (second, "start", "b", {}),
    ]
    with pytest.raises(ZeroDivisionError), ledger.write():
        journal.done(first)
        raise ZeroDivisionError
    assert len(journal.pending()) == 2
    journal.done(first)
    journal.done(second)
    journal.done(second)
    assert journal.pending() == []
    assert seen[:2] == ["create: before begin", "create: begun"]
    ledger.close()


def test_a_newer_ledger_is_refused(path: str) -> None:
    Ledger(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version=999")
    db.close()
    with pytest.raises(FailedPrecondition, match="schema version 999, newer than this nagaya's 2"):
        Ledger(path)


@pytest.mark.parametrize("content", [b"this is no database, it is a text" * 100, None])
def test_what_is_no_ledger_is_one_line(path: str, content: bytes | None) -> None:
    if content is None:
        Path(path).mkdir()
    else:
        Path(path).write_bytes(content)
    with pytest.raises(KernelError, match="cannot open the ledger") as caught:
        Ledger(path)
    assert "\n" not in str(caught.value)


CRASH = """
import os
from nagaya.engine.journal import Journal
from nagaya.engine.ledger import Ledger, Volume
def main(argv):
    ledger = Ledger(argv[0])
    journal = Journal(ledger)
    number = journal.begin("create", "a")
    with ledger.write():
        ledger.put_volume(Volume("whole", 1, False))
    with ledger.write():
        ledger.put_volume(Volume("half", 1, False))
        journal.done(number)
        os.kill(os.getpid(), 9)
"""


def test_kill_in_a_transaction(path: str, tmp_path: Path) -> None:
    (tmp_path / "crash.py").write_text(CRASH)
    argv = python_main("crash")
    argv[-1] = argv[-1].replace("[1:1] = [", f"[1:1] = [{str(tmp_path)!r}, ", 1)
    assert subprocess.run([*argv, path], timeout=60).returncode == -9
    ledger = Ledger(path)
    assert [v.name for v in ledger.volumes()] == ["whole"]
    assert [o.subject for o in Journal(ledger).pending()] == ["a"]
    ledger.close()


@pytest.mark.root
def test_a_full_disk_says_so(tmp_path: Path) -> None:
    code = (
        "from nagaya.engine.ledger import Ledger, Volume\n"
        "from nagaya.errors import ResourceExhausted\n"
        f"ledger = Ledger({str(tmp_path / 'small/ledger.db')!r})\n"
        "try:\n"
        "    for n in range(100000): ledger.put_volume(Volume(f'v{n}', 1, False, {'x': 'y' * 4000}))\n"
        "except ResourceExhausted as error: print(error)\n"
        "print(len(ledger.volumes()) > 10)\n"
    )
    (tmp_path / "small").mkdir()
    script = f'mount -t tmpfs -o size=1m none "$1/small" && exec {sys.executable} -c "$2"'
    source = Path(__file__).resolve().parents[2] / "src"
    result = subprocess.run(
        ["unshare", "--mount", "sh", "-c", script, "sh", str(tmp_path), code],
        capture_output=True,
        text=True,
        timeout=60,
        env={**os.environ, "PYTHONPATH": str(source)},
    )
    assert result.stdout.splitlines() == ["the ledger cannot grow: database or disk is full", "True"], (
        result.stderr
    )
