"""A build of ten steps on nagayad, dockerd's classic builder and buildah (`./dev bench build`): from nothing,
again, and with one line changed near its end."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import measure
import stage
from bench_docker import Daemon, begin
from measure import Contest, Peer
from stage import IMAGE, Command, Daemons, attempt, need, say

_DOCKERFILE = """FROM {image}
LABEL first={first}
ENV A=b
WORKDIR /app
COPY a /app/a
RUN echo one >/app/one
COPY tree /app/tree
RUN cp -r /app/tree /app/copy
RUN rm -r /app/copy/0
RUN echo {last} >/app/last
CMD ["sh"]
"""
_FILES = 200


class Context:
    """A directory that is built, whose Dockerfile changes from run to run."""

    def __init__(self, path: Path, image: str) -> None:
        self.path, self._image, self._count = path, image, 0
        for number in range(_FILES):
            file = path / "tree" / str(number % 10) / str(number)
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(os.urandom(4096))
        (path / "a").write_text("a\n")
        self.write("0", "0")

    def write(self, first: str, last: str) -> None:
        """The Dockerfile with these words at its beginning and near its end."""
        text = _DOCKERFILE.format(image=self._image, first=first, last=last)
        (self.path / "Dockerfile").write_text(text)

    def cold(self) -> None:
        """Nothing of the next build has been built."""
        self._count += 1
        self.write(f"f{self._count}", f"l{self._count}")

    def changed(self) -> None:
        """All but the last RUN of the next build has been built."""
        self._count += 1
        self.write("0", f"l{self._count}")

    def same(self) -> None:
        """All of the next build has been built."""
        self.write("0", "0")


def _docker(daemon: Daemon, context: Path) -> Command:
    """The docker command's builds by the classic builder."""
    return daemon.docker("build", "-q", "-t", "built", str(context))


def _buildah(base: Path, archive: Path, context: Path) -> Command:
    """buildah's builds, with the image in a storage of its own. Raises Failed."""
    argv = [need("buildah"), "--root", f"{base}/b/root", "--runroot", f"{base}/b/run"]
    argv += ["--storage-driver", "overlay"]
    Command(base, *argv, "pull", "-q", f"docker-archive:{archive}")()
    return Command(base, *argv, "bud", "-q", "--layers", "--isolation", "chroot", "-t", "built", str(context))


def compete(base: Path, rounds: int) -> list[dict[str, Any]]:
    """The results of the three contests."""
    daemons = Daemons(base)
    titles = ("cold", "the same again", "one line changed")
    peers: dict[str, list[Peer]] = {title: [] for title in titles}

    def enlist(name: str, image: str, make: Callable[[Path], Command]) -> None:
        context = Context(base / f"context-{name}", image)
        build = partial(make, context.path)
        prepare = zip(titles, (context.cold, context.same, context.changed), strict=True)
        for title, ready in prepare:
            peer = attempt(name, build)
            peer.prepare = ready
            peers[title].append(peer)

    try:
        archive = stage.archive(base, stage.rootfs(base))
        found = begin(base, daemons, archive)
        for name, one in found.items():
            enlist(name, one.image, partial(_docker, one))
        enlist("buildah", IMAGE, partial(_buildah, base, archive))
        played = [Contest(f"ten steps, {title}", peers[title]) for title in titles]
        for contest in played:
            say(contest.title)
            contest.play(rounds, warmups=1)
        return [contest.result() for contest in played]
    finally:
        daemons.stop()


def main() -> int:
    """Measure, print, and keep the JSON in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="./dev bench build", description=__doc__)
    parser.add_argument("--rounds", type=int, default=10, help="timed turns of each peer (default 10)")
    stage.add_options(parser)
    options = parser.parse_args()
    base = stage.enter()
    about = stage.machine()
    return stage.publish("build", compete(base, options.rounds), about, options, measure.matrix)


if __name__ == "__main__":
    sys.exit(main())
