"""kill -9 at every step of what a build keeps: the image with its steps, or nothing; and then it is built."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from killsteps import Victims, enumerate_steps, recovered

pytestmark = pytest.mark.root


def files(root: Path) -> list[str]:
    """Everything in the store that is not of its making."""
    found = [str(p.relative_to(root)) for p in (root / "content").rglob("*") if p.is_file()]
    found += [f"layer {p.name}" for p in (root / "snapshots/l").iterdir() if p.name != "empty"]
    return found + [f"snapshot {p.name}" for p in (root / "snapshots").iterdir() if p.name != "l"]


def kill_at(victims: Victims, number: int, root: Path, given: Path) -> bool | None:
    """Was the image there after the recovery? None when the build got through before the step."""
    root.mkdir()
    ended = victims("build", root, given, number)
    if ended == 0:
        return None
    assert ended == -signal.SIGKILL, number
    with recovered(root) as (catalog, store):
        listed, steps = store.list(), catalog.steps()
        assert (len(listed), len(steps), len(catalog.layers())) in ((0, 0, 0), (1, 2, 2)), number
        # two documents and two blobs, two layers
        assert len(files(root)) == (6 if listed else 0), (number, files(root))
        with store.builds.open() as bench:
            assert [row for n in range(2) if (row := bench.step(f"k{n}"))] == steps
        if listed:
            lower = store.files_of(listed[0].id)
            assert [sorted(p.name for p in Path(d).iterdir()) for d in lower] == [["1"], ["0"]]
    assert victims("build", root, given, 0) in (-signal.SIGKILL, 0)
    with recovered(root) as (_, store):
        assert len(store.list()) == 1 and len(files(root)) == 6, (number, files(root))
        store.remove("built:1", ())
        store.builds.prune(lambda records: records)
        assert files(root) == [], number
    subprocess.run(["rm", "-rf", str(root)], check=True)
    return bool(listed)


def test_kill_at_every_step(tmp_path: Path) -> None:
    given = tmp_path / "given"
    (given / "d").mkdir(parents=True)
    (given / "d" / "file").write_text("x" * 1000)
    (given / "link").symlink_to("d/file")
    found = enumerate_steps(lambda victims, n: kill_at(victims, n, tmp_path / str(n), given))
    assert found.count(False) > 20 and found[0], found
