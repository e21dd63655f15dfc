"""GET /distribution/NAME/json: what a registry has, asked through the daemon."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from dockerd import Dockerd
from house import House
from images import Registry, layer, write_layout
from imagetrees import free_port

pytestmark = pytest.mark.root


def test_what_a_registry_has(server: Dockerd | House, tmp_path: Path) -> None:
    write_layout(tmp_path / "oci", [layer([("a", b"1")])], {"Cmd": ["true"]})
    with Registry(tmp_path / "registry", server.inside([]), port=free_port()) as registry:
        # dockerd of that age knows its own kind of manifest only
        name = registry.push(f"oci:{tmp_path}/oci:latest", "x/y:1", "--format", "v2s2")
        found = json.loads(server.curl(f"/v1.41/distribution/{name}/json"))
        assert found["Platforms"] == [{"architecture": "amd64", "os": "linux"}]
        about = found["Descriptor"]
        assert about["mediaType"] == "application/vnd.docker.distribution.manifest.v2+json"
        assert about["digest"].startswith("sha256:") and about["size"] > 0
        again = json.loads(server.curl(f"/v1.41/distribution/{name[:-2]}@{about['digest']}/json"))
        assert again["Descriptor"] == about
        message = json.loads(server.curl(f"/v1.41/distribution/{name}9/json"))["message"]
        assert "manifest unknown" in message
    message = json.loads(server.curl("/v1.41/distribution/A:1/json"))["message"]
    assert "must be lowercase" in message
