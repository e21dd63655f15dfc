"""How long images take to come and go (`./dev bench images`).

A big image of several layers, each the files of one Debian package, and a registry on loopback; pull with
unpacking, push, load and save, peers taking turns in each. What is written is flushed between the turns: one
peer's unwritten files are not the next one's burden. nagaya alone flushes its own within the time.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from isal import isal_zlib

import measure
import stage
from measure import Contest, Failed, Peer
from stage import BIN, Command, Daemons, need, say

# 660 MB in 25,000 files: two compilers' worth of big ones, and many headers
PACKAGES = ("golang-1.19-go", "golang-1.19-src", "libboost1.74-dev", "libllvm14", "perl-modules-5.36")
_CACHE = Path("/var/tmp/nagaya-bench")
_ADDRESS = "127.0.0.1:5000"
_TARGET = "127.0.0.1:5001"
NAME = f"{_ADDRESS}/big:1"
PUSHED = f"{_TARGET}/big:1"
ARCHIVED = "localhost/big:1"


def layers(packages: Sequence[str]) -> list[Path]:
    """The packages' files as tar archives, kept for the next time. Raises Failed when there are none."""
    _CACHE.mkdir(mode=0o700, exist_ok=True)
    found = []
    for package in packages:
        archive = _CACHE / f"{package}.tar"
        if not archive.exists():
            say(f"fetching {package}")
            done = subprocess.run(["apt-get", "download", package], cwd=_CACHE, capture_output=True)
            packed = sorted(_CACHE.glob(f"{package}_*.deb"))
            if done.returncode or not packed:
                say(f"{package} cannot be had here: going on without it")
                continue
            part = archive.with_suffix(".part")
            with part.open("wb") as output:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", str(packed[-1])], stdout=output, check=True)
            part.rename(archive)
            packed[-1].unlink()
        found.append(archive)
    if not found:
        raise Failed("none of the packages for the image can be had")
    return found


def write_layout(where: Path, archives: Sequence[Path]) -> None:
    """An OCI layout of these layers, compressed."""
    blobs = where / "blobs" / "sha256"
    blobs.mkdir(parents=True)

    def put(data: bytes, kind: str) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {
            "mediaType": f"application/vnd.oci.image.{kind}",
            "digest": f"sha256:{digest}",
            "size": len(data),
        }

    described, diff_ids = [], []
    for archive in archives:
        data = archive.read_bytes()
        diff_ids.append(f"sha256:{hashlib.sha256(data).hexdigest()}")
        compressor = isal_zlib.compressobj(3, isal_zlib.DEFLATED, 31)
        described.append(put(compressor.compress(data) + compressor.flush(), "layer.v1.tar+gzip"))
    config = {
        "architecture": {"x86_64": "amd64", "aarch64": "arm64"}.get(platform.machine(), platform.machine()),
        "os": "linux",
        "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": put(json.dumps(config).encode(), "config.v1+json"),
        "layers": described,
    }
    entry = put(json.dumps(manifest).encode(), "manifest.v1+json")
    (where / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
    (where / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


class Registry:
    """Debian's docker-registry on loopback."""

    def __init__(self, base: Path, address: str) -> None:
        self._data = base / f"registry-{address.rpartition(':')[2]}"
        self._data.mkdir()
        config = {
            "version": 0.1,
            "log": {"level": "error"},
            "storage": {"filesystem": {"rootdirectory": str(self._data)}},
            "http": {"addr": address},
        }
        path = base / f"{self._data.name}.yml"
        path.write_text(json.dumps(config))  # JSON is YAML
        self.process = subprocess.Popen(
            [need("docker-registry"), "serve", str(path)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        deadline = time.monotonic() + 30
        while subprocess.run([need("curl"), "-s", f"http://{address}/v2/"], capture_output=True).returncode:
            if time.monotonic() > deadline:
                raise Failed("the registry does not start")
            time.sleep(0.05)

    def forget(self) -> None:
        """Everything that was pushed."""
        for path in self._data.iterdir():
            shutil.rmtree(path)

    def stop(self) -> None:
        """End it."""
        self.process.kill()
        self.process.wait()


class Client:
    """One peer's command line, and how it says things."""

    def __init__(self, base: Path, name: str, argv: Sequence[str], env: dict[str, str]) -> None:
        self.name = name
        self._base = base
        self._argv = argv
        self._env = {"XDG_RUNTIME_DIR": str(base), "TMPDIR": str(base), **env}

    def __call__(self, *words: str) -> Callable[[], None]:
        return Command(self._base, *self._argv, *words, env=self._env)

    def try_(self, *words: str) -> None:
        """Run it, whatever comes of it."""
        try:
            self(*words)()
        except Failed:
            pass


def clients(base: Path, daemons: Daemons) -> dict[str, Client | str]:
    """The peers, ours first; the reason for one that cannot take part."""
    podman = ["--root", f"{base}/p/root", "--runroot", f"{base}/p/run", "--storage-driver", "overlay"]
    wanted: dict[str, tuple[Path | None, str, list[str], dict[str, str]]] = {
        "nagaya": (daemons.nagaya, str(BIN / "nagaya"), [], {"NAGAYA_HOST": f"unix://{daemons.nagaya}"}),
        "dockerd": (
            daemons.dockerd, "docker", [],
            {"DOCKER_HOST": f"unix://{daemons.dockerd}", "DOCKER_CONFIG": str(base)},
        ),
        "ctr": (daemons.containerd, "ctr", ["--address", str(daemons.containerd), "-n", "images"], {}),
        "podman": (None, "podman", podman, {}),
        "skopeo": (None, "skopeo", ["--insecure-policy"], {}),
    }  # fmt: skip
    found: dict[str, Client | str] = {}
    for name, (socket, program, words, env) in wanted.items():
        try:
            if socket is not None and not socket.exists():
                raise Failed("its daemon does not run")
            path = program if program.startswith("/") else need(program)
            found[name] = Client(base, name, [path, *words], env)
        except Failed as failed:
            found[name] = str(failed)
    return found


def forget(client: Client) -> None:
    """Take all images away, and let the disk have what is unwritten."""
    if client.name in ("nagaya", "dockerd"):
        client.try_("image", "prune", "-a", "-f")
    elif client.name == "ctr":
        for name in (NAME, ARCHIVED, PUSHED):
            client.try_("images", "rm", "--sync", name)
    elif client.name == "podman":
        client.try_("rmi", "-a", "-f")
    os.sync()


def contests(base: Path, layout: Path, found: dict[str, Client | str], target: Registry) -> list[Contest]:
    """Pull, push, load and save."""
    output, archive = base / "output.tar", base / "archive.tar"
    docker = {"pull": ("pull", "-q", NAME), "load": ("load", "-q", "-i", str(archive))}
    verbs: dict[str, dict[str, tuple[str, ...]]] = {
        "nagaya": docker,
        "dockerd": docker,
        "ctr": {
            "pull": ("images", "pull", "--plain-http", NAME),
            "load": ("images", "import", str(archive)),
        },
        "podman": {
            "pull": ("pull", "-q", "--tls-verify=false", NAME),
            "load": ("load", "-q", "-i", str(archive)),
        },
        "skopeo": {
            "pull": ("copy", "-q", "--src-tls-verify=false", f"docker://{NAME}", f"dir:{base}/skopeo")
        },
    }
    out: dict[str, dict[str, tuple[str, ...]]] = {
        **{
            name: {"push": ("push", "-q", PUSHED), "save": ("save", "-o", str(output), PUSHED)}
            for name in ("nagaya", "dockerd")
        },
        "ctr": {
            "push": ("images", "push", "--plain-http", PUSHED),
            "save": ("images", "export", str(output), PUSHED),
        },
        "podman": {
            "push": ("push", "-q", "--tls-verify=false", PUSHED),
            "save": ("save", "-q", "-o", str(output), PUSHED),
        },
        "skopeo": {
            "push": ("copy", "-q", "--dest-tls-verify=false", f"oci:{layout}", f"docker://{PUSHED}"),
            "save": ("copy", "-q", f"oci:{layout}", f"docker-archive:{output}:{PUSHED}"),
        },
    }

    def cleared(client: Client) -> None:
        forget(client)
        shutil.rmtree(base / "skopeo", ignore_errors=True)

    def tagged(client: Client, verb: str) -> None:
        """The image is there under the name it goes by; nothing else is."""
        output.unlink(missing_ok=True)
        if verb == "push":
            target.forget()
        if client.name == "ctr":
            client.try_("images", "pull", "--plain-http", NAME)
            client.try_("images", "tag", NAME, PUSHED)
        elif client.name != "skopeo":
            client(*verbs[client.name]["pull"])()
            client("tag", NAME, PUSHED)()
        os.sync()

    def peer(verb: str, name: str, client: Client | str) -> Peer:
        words = (verbs if verb in ("pull", "load") else out).get(name, {}).get(verb)
        if isinstance(client, str) or words is None:
            return Peer(name, lambda: None, failure=client if isinstance(client, str) else "has no such verb")
        ready = partial(cleared, client) if verb in ("pull", "load") else partial(tagged, client, verb)
        return Peer(name, client(*words), prepare=ready)

    titles = {
        "pull": "pull and unpack, ms (skopeo: to a directory, not unpacked)",
        "load": "load of a docker archive, ms",
        "push": "push, ms",
        "save": "save, ms",
    }
    return [Contest(title, [peer(verb, *one) for one in found.items()]) for verb, title in titles.items()]


def peak(client: Client | str, pid: int) -> dict[str, Any]:
    """The most memory that nagayad had while it pulled, as a contest's result (proc(5), clear_refs)."""
    try:
        if isinstance(client, str):
            raise Failed(client)
        forget(client)
        Path(f"/proc/{pid}/clear_refs").write_text("5")
        client("pull", "-q", NAME)()
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        size = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:"))
        row: dict[str, Any] = {"peer": "nagaya", "peak_mb": size / 1024}
    except (Failed, OSError) as failed:
        row = {"peer": "nagaya", "left_out": str(failed)}
    return {"title": "peak memory of nagayad in a pull, MB", "rows": [row]}


def compete(base: Path, packages: Sequence[str], rounds: int) -> list[dict[str, Any]]:
    """Build the image, start the daemons and registries, play all contests, and return the results."""
    layout = base / "layout"
    archives = [path for package in packages if (path := _CACHE / f"{package}.tar").exists()]
    write_layout(layout, archives)
    size = sum(path.stat().st_size for path in (layout / "blobs/sha256").iterdir())
    whole = sum(path.stat().st_size for path in archives)
    say(f"{len(archives)} layers, {size // 10**6} MB, {whole // 10**6} MB unpacked")
    daemons, registries = Daemons(base), [Registry(base, address) for address in (_ADDRESS, _TARGET)]
    try:
        for start in (daemons.start_nagaya, daemons.start_containerd, daemons.start_dockerd):
            try:
                start()
            except Failed as failed:
                say(str(failed))
        copy = [need("skopeo"), "--insecure-policy", "copy", "-q", f"oci:{layout}"]
        subprocess.run([*copy, f"docker://{NAME}", "--dest-tls-verify=false"], check=True)
        subprocess.run([*copy, f"docker-archive:{base}/archive.tar:{ARCHIVED}"], check=True)
        found = clients(base, daemons)
        results = []
        for contest in contests(base, layout, found, registries[1]):
            say(contest.title)
            contest.play(rounds, warmups=1)
            results.append(contest.result())
        pid = int((daemons.nagaya.parent / "run" / "nagayad.pid").read_text())
        return [*results, peak(found["nagaya"], pid)]
    finally:
        daemons.stop()
        for registry in registries:
            registry.stop()


def main() -> int:
    """Measure, print, and keep the JSON in benchmarks/results."""
    parser = argparse.ArgumentParser(prog="./dev bench images", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="timed turns of each peer (default 5)")
    parser.add_argument(
        "--package", action="append", help="a layer of the image, instead of the usual ones; repeatable"
    )
    stage.add_options(parser)
    options = parser.parse_args()
    packages = options.package or PACKAGES
    if "NAGTB_BASE" not in os.environ:  # there is no network where it is measured
        layers(packages)
    base = stage.enter()
    about = stage.machine()
    return stage.publish("images", compete(base, packages, options.rounds), about, options, measure.matrix)


if __name__ == "__main__":
    sys.exit(main())
