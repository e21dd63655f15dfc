"""Credentials for a registry by the command line: tried, kept, forgotten."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from clients import Cli
from images import Registry
from imagetrees import free_port

pytestmark = pytest.mark.root

HTPASSWD = "me:$2b$04$mT2Nmv5Mtpqv1/2cw0rON.qJe8PvX94CjgNqzLGWkx3mBwjimcev6"  # "secret"

HELPER = """#!/bin/sh
cat > "$0.$1"
case "$1" in get) printf '{"Username":"me","Secret":"secret"}' ;; esac
"""


def test_login_and_logout(cli: Cli, tmp_path: Path) -> None:
    (tmp_path / "htpasswd").write_text(HTPASSWD + "\n")
    config = tmp_path / "docker"
    config.mkdir()
    (config / "config.json").write_text('{"detachKeys": "ctrl-x"}')
    (config / "config.json").chmod(0o600)
    home = {"DOCKER_CONFIG": str(config)}

    def kept() -> dict[str, object]:
        return dict(json.loads((config / "config.json").read_text()))

    auth: dict[str, object] = {"htpasswd": {"realm": "r", "path": f"{tmp_path}/htpasswd"}}
    with Registry(tmp_path / "registry", cli.server.inside([]), port=free_port(), auth=auth) as registry:
        host = registry.address
        said = cli("login", "-u", "me", "--password-stdin", host, input="wrong\n", environment=home)
        assert said.status == 1 and f"login attempt to http://{host}/v2/ failed" in said.err
        assert "401 Unauthorized" in said.err and kept() == {"detachKeys": "ctrl-x"}
        said = cli("login", "-u", "me", "--password-stdin", host, input="secret\n", environment=home)
        assert said.status == 0 and "Login Succeeded" in said.out
        assert kept() == {"detachKeys": "ctrl-x", "auths": {host: {"auth": "bWU6c2VjcmV0"}}}
        assert (config / "config.json").stat().st_mode & 0o077 == 0
        name = registry.push_busybox(tmp_path, "private/x:1", "--dest-creds", "me:secret")
        assert cli("pull", "-q", name, environment=home).status == 0
        said = cli("logout", host, environment=home)
        assert (said.status, said.out) == (0, f"Removing login credentials for {host}\n")
        assert kept() == {"detachKeys": "ctrl-x", "auths": {}}
        assert cli("pull", "-q", name, environment=home).status == 1
        # a helper, when one is configured
        program = tmp_path / "docker-credential-own"
        program.write_text(HELPER)
        program.chmod(0o755)
        (config / "config.json").write_text('{"credsStore": "own"}')
        path = {**home, "PATH": f"{tmp_path}:{cli.server.environment['PATH']}"}
        said = cli("login", "-u", "me", "--password-stdin", host, input="secret", environment=path)
        assert said.status == 0, said
        stored = json.loads((tmp_path / "docker-credential-own.store").read_text())
        assert stored == {"ServerURL": host, "Username": "me", "Secret": "secret"}
        assert "secret" not in (config / "config.json").read_text()
        assert cli("pull", "-q", name, environment=path).status == 0
        assert cli("logout", host, environment=path).status == 0
        erased = (tmp_path / "docker-credential-own.erase").read_text().strip()
        assert erased.removeprefix("https://") == host
        cli.ok("rmi", name)
    said = cli("login", "-u", "me", "--password-stdin", host, input="secret", environment=home)
    assert said.status == 1 and "connection refused" in said.err
    said = cli("login", "--password-stdin", host, input="secret", environment=home)
    assert said.status != 0 and "username" in said.err
