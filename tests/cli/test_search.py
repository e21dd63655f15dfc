"""`search` and `import` of a URL: what the daemon fetches from the web."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from clients import Cli
from dockerd import Dockerd
from fakeregistry import file, tar
from house import wait_for
from images import Registry, layer, write_layout

pytestmark = pytest.mark.root

RESULTS = [
    {"name": "team/app", "description": "An app\nof ours " + "x" * 60, "star_count": 7, "is_official": False},
    {"name": "app", "description": "", "star_count": 2, "is_official": True},
]


@contextmanager
def web(cli: Cli, directory: Path, port: int) -> Iterator[str]:
    """A web server of these files, beside the daemon; its address. It ignores queries."""
    address = f"127.0.0.1:{port}"
    served = [sys.executable, "-m", "http.server", "-b", "127.0.0.1", "-d", str(directory), str(port)]
    server = subprocess.Popen(cli.server.inside(served), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        ask = cli.server.inside(["curl", "-s", f"http://{address}/"])
        wait_for(lambda: subprocess.run(ask, capture_output=True).returncode == 0, 30, "the web server")
        yield address
    finally:
        server.kill()
        server.wait()


def test_search(cli: Cli, tmp_path: Path) -> None:
    """Of a registry that answers as Docker Hub does: what every docker command shows of it."""
    for name in ("v1", "v2"):
        (tmp_path / name).mkdir()
    (tmp_path / "v1/_ping").write_text("{}")
    (tmp_path / "v1/search").write_text(json.dumps({"num_results": 2, "query": "app", "results": RESULTS}))
    with web(cli, tmp_path, 5060) as address:
        shown = cli.ok("search", "--no-trunc", f"{address}/app").splitlines()
        assert shown[0].split()[:4] == ["NAME", "DESCRIPTION", "STARS", "OFFICIAL"]
        assert "team/app" in shown[1] and "An app of ours xxx" in shown[1] and "…" not in shown[1]
        assert "…" in cli.ok("search", f"{address}/app").splitlines()[1]
        row = "{{.StarCount}}|{{.IsOfficial}}"
        assert cli.ok("search", "--format", row, f"{address}/app").splitlines() == ["7|", "2|[OK]"]
        for chosen in ("stars=3", "is-official=false"):
            assert cli.ok("search", "-f", chosen, "--format", row, f"{address}/app") == "7|"
        said = cli("search", "--limit", "101", f"{address}/app")
        assert said.status == 1 and "is outside the range of [1, 100]" in said.err.lower()
        said = cli("search", "-f", "color=red", f"{address}/app")
        assert said.status == 1 and "invalid filter 'color" in said.err.lower()
    said = cli("search", "127.0.0.1:1/app")
    assert said.status == 1 and said.err.count("\n") == 1
    said = cli("search", "http://127.0.0.1:1/app")
    assert said.status == 1 and "invalid repository name" in said.err.lower()


def test_import_of_a_url(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "files.tar").write_bytes(tar(file("motd", b"welcome\n" * 100_000)))
    (tmp_path / "junk").write_bytes(b"nothing of the kind" * 100)
    with web(cli, tmp_path, 5061) as address:
        said = cli("import", "-c", "ENV A=1", f"http://{address}/files.tar", "web:1")
        assert said.status == 0, said
        lines = said.out.splitlines()
        assert lines[0] == f"Downloading from http://{address}/files.tar"
        about = json.loads(cli.ok("inspect", "web:1"))[0]
        there = sorted(cli.ok("images", "-aq").split())
        assert about["Id"] == lines[-1] and about["Config"]["Env"] == ["A=1"]
        assert about["Comment"] == f"Imported from http://{address}/files.tar"
        said = cli("import", f"http://{address}/absent")
        assert said.status == 1 and f"failed to GET http://{address}/absent with status 404" in said.err
        said = cli("import", f"http://{address}/junk")
        assert said.status == 1 and said.err.strip().count("\n") == 0, said
    said = cli("import", f"http://{address}/files.tar")
    assert said.status == 1 and "connection refused" in said.err
    assert sorted(cli.ok("images", "-aq").split()) == there


def test_search_of_a_registry_that_only_lists(cli: Cli, tmp_path: Path) -> None:
    """Debian's docker-registry has a catalog, which dockerd does not look into."""
    if isinstance(cli.server, Dockerd):
        return
    with Registry(tmp_path / "registry", cli.server.inside([]), 5062) as registry:
        write_layout(tmp_path / "layout", [layer([("a", b"a")])], {"Cmd": ["sh"]})
        for name in ("team/app", "team/tool", "apple"):
            registry.push(f"oci:{tmp_path}/layout:latest", f"{name}:1")
        found = cli.ok("search", "--format", "{{.Name}}", f"{registry.address}/app").splitlines()
        assert found == [f"{registry.address}/apple", f"{registry.address}/team/app"]
        assert (
            cli.ok("search", "--limit", "1", "--format", "{{.Name}}", f"{registry.address}/app") == found[0]
        )
        assert cli("pull", "-q", f"{found[1]}:1").status == 0
