"""Pushing by the command line, to Debian's docker-registry."""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

import pytest
from clients import Cli
from images import Registry
from imagetrees import free_port

pytestmark = pytest.mark.root

IMAGE = "nagaya/busybox"
HTPASSWD = "me:$2b$04$mT2Nmv5Mtpqv1/2cw0rON.qJe8PvX94CjgNqzLGWkx3mBwjimcev6"  # "secret"


def test_push_and_pull_back(cli: Cli, tmp_path: Path) -> None:
    image = cli.ok("inspect", "-f", "{{.Id}}", IMAGE)
    layer = cli.ok("inspect", "-f", "{{index .RootFS.Layers 0}}", IMAGE)[7:19]
    with Registry(tmp_path / "registry", cli.server.inside([]), port=free_port()) as registry:
        name = f"{registry.address}/some/pushed"
        said = cli("push", f"{name}:1")
        assert said.status == 1
        assert said.err == f"An image does not exist locally with the tag: {name}\n"
        cli.ok("tag", IMAGE, f"{name}:1")
        cli.ok("tag", IMAGE, f"{name}:2")
        lines = cli.ok("push", f"{name}:1").splitlines()
        assert lines[:3] == [
            f"The push refers to repository [{name}]",
            f"{layer}: Preparing",
            f"{layer}: Pushed",
        ]
        found = re.fullmatch(r"1: digest: (sha256:[0-9a-f]{64}) size: \d+", lines[3])
        assert found and len(lines) == 4
        assert f"{layer}: Layer already exists" in cli.ok("push", f"{name}:1")
        said = cli("push", name)
        assert (said.status, said.out.splitlines()[0]) == (1, "Using default tag: latest")
        assert said.err == f"tag does not exist: {name}:latest\n"
        said = cli("push", "-a", f"{name}:1")
        assert said.status != 0 and "tag can't be used with --all-tags/-a" in said.err
        assert cli.ok("push", "-q", f"{name}:2") == f"{name}:2"
        lines = cli.ok("push", "-a", name).splitlines()
        assert [line.partition(":")[0] for line in lines if "digest" in line] == ["1", "2"]
        assert cli.ok("inspect", "-f", "{{index .RepoDigests 0}}", f"{name}:1") == f"{name}@{found[1]}"
        other = f"{registry.address}/some/other:1"
        cli.ok("tag", IMAGE, other)
        assert f"{layer}: Mounted from some/pushed" in cli.ok("push", other)
        cli.ok("rmi", other, f"{name}:1", f"{name}:2")
        assert cli.ok("pull", "-q", f"{name}@{found[1]}") == f"{name}@{found[1]}"
        assert cli.ok("inspect", "-f", "{{.Id}}", f"{name}@{found[1]}") == image
        cli.ok("rmi", f"{name}@{found[1]}")
    gone = f"{registry.address}/some/gone:1"
    cli.ok("tag", IMAGE, gone)
    said = cli("push", gone)
    assert said.status == 1 and "connection refused" in said.err
    cli.ok("rmi", gone)


def test_push_with_credentials(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD + "\n")
    auth: dict[str, object] = {"htpasswd": {"realm": "r", "path": f"{tmp_path}/htpasswd"}}
    cli.ok("inspect", "-f", "{{.Id}}", IMAGE)
    with Registry(tmp_path / "registry", cli.server.inside([]), port=free_port(), auth=auth) as registry:
        name = f"{registry.address}/private/x:1"
        cli.ok("tag", IMAGE, name)
        said = cli("push", name)
        assert said.status == 1 and said.err == "no basic auth credentials\n"
        for password, status, why in (
            ("wrong", 1, "unauthorized: authentication required\n"),
            ("secret", 0, ""),
        ):
            config = tmp_path / password
            config.mkdir()
            packed = base64.b64encode(f"me:{password}".encode()).decode()
            (config / "config.json").write_text(json.dumps({"auths": {registry.address: {"auth": packed}}}))
            said = cli("push", name, environment={"DOCKER_CONFIG": str(config)})
            assert said.status == status and said.err.endswith(why), said
        cli.ok("rmi", name)
