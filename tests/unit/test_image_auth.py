"""Whose credentials for which registry; what a broken store of them means; proxies and private CAs."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
from fakeregistry import quick

from nagaya.errors import FailedPrecondition, InvalidArgument
from nagaya.image import auth
from nagaya.image.auth import RegistryAuth
from nagaya.image.transport import NetworkError, Transport


def packed(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def config(path: Path, document: Any) -> str:
    file = path / "config.json"
    file.write_text(document if isinstance(document, str) else json.dumps(document))
    return str(file)


@pytest.mark.parametrize(
    ("key", "domain", "found"),
    [
        ("https://index.docker.io/v1/", "docker.io", True),
        ("docker.io", "docker.io", True),
        ("registry.example:5000", "registry.example:5000", True),
        ("https://registry.example:5000", "registry.example:5000", True),
        ("https://registry.example:5000/v2/", "registry.example:5000", True),
        ("registry.example", "registry.example:5000", False),
        ("registry.example:5000", "registry.example", False),
        ("evil-registry.example", "registry.example", False),
        ("registry.example.evil", "registry.example", False),
    ],
)
def test_an_entry_is_for_its_own_registry_only(tmp_path: Path, key: str, domain: str, found: bool) -> None:
    path = config(tmp_path, {"auths": {key: {"auth": packed("me:pass:word")}}})
    assert auth.from_docker_config(path, domain) == (
        RegistryAuth("me", "pass:word") if found else RegistryAuth()
    )


def test_no_file_is_nobody(tmp_path: Path) -> None:
    for path in ("", str(tmp_path / "none"), config(tmp_path, {}), config(tmp_path, "")):
        assert not auth.from_docker_config(path, "x.example")


def test_tokens(tmp_path: Path) -> None:
    path = config(
        tmp_path, {"auths": {"x.example": {"identitytoken": "i"}, "y.example": {"registrytoken": "r"}}}
    )
    assert auth.from_docker_config(path, "x.example").identity_token == "i"
    assert auth.from_docker_config(path, "y.example").registry_token == "r"


def test_credentials_are_not_printed() -> None:
    assert "secret" not in repr(RegistryAuth("me", "secret", "secret", "secret"))


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ("{", "is not valid"),
        ("[" * 100_000, "is not valid"),
        ({"auths": {"x.example": {"auth": "%%%"}}}, "is not base64 of name:password"),
        ({"auths": {"x.example": {"auth": packed("no colon")}}}, "is not base64 of name:password"),
        ({"credHelpers": {"x.example": "../../bin/sh"}}, "invalid credential helper name"),
        ({"credsStore": "a/b"}, "invalid credential helper name"),
        ({"auths": [1]}, "is not valid"),
        (" " * ((1 << 20) + 1), "is over 1048576 bytes"),
    ],
)
def test_a_broken_file_fails_rather_than_asking_without(tmp_path: Path, document: Any, words: str) -> None:
    """CVE-2021-41092."""
    with pytest.raises(InvalidArgument, match=words):
        auth.from_docker_config(config(tmp_path, document), "x.example")


@pytest.fixture
def helper(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A credential helper "test" whose script each test writes."""
    program = tmp_path / "bin" / "docker-credential-test"
    program.parent.mkdir()
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    monkeypatch.setenv("SECRET_OF_THE_DAEMON", "x")
    return program


def script(program: Path, text: str) -> None:
    program.write_text("#!/bin/sh\n" + text)
    program.chmod(program.stat().st_mode | stat.S_IXUSR)


def test_a_helper_is_asked_as_docker_asks(tmp_path: Path, helper: Path) -> None:
    script(
        helper,
        f'read -r who; echo "$1 $who $SECRET_OF_THE_DAEMON" >> {tmp_path}/asked\n'
        'echo \'{"ServerURL":"x","Username":"me","Secret":"s"}\'',
    )
    path = config(
        tmp_path, {"credHelpers": {"x.example": "test"}, "auths": {"y.example": {"auth": packed("a:b")}}}
    )
    assert auth.from_docker_config(path, "x.example") == RegistryAuth("me", "s")
    assert auth.from_docker_config(path, "y.example") == RegistryAuth("a", "b")
    path = config(tmp_path, {"credsStore": "test"})
    assert auth.from_docker_config(path, "docker.io") == RegistryAuth("me", "s")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert asked == ["get x.example ", "get https://index.docker.io/v1/ "]


def test_an_identity_token_and_nobody(tmp_path: Path, helper: Path) -> None:
    path = config(tmp_path, {"credsStore": "test"})
    script(helper, 'cat >/dev/null; echo \'{"Username":"<token>","Secret":"t"}\'')
    assert auth.from_docker_config(path, "x.example") == RegistryAuth(identity_token="t")
    script(helper, "cat >/dev/null; echo credentials not found in native keychain; exit 1")
    assert auth.from_docker_config(path, "x.example") == RegistryAuth()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("cat >/dev/null; echo locked; exit 1", "credential helper docker-credential-test: locked"),
        ("cat >/dev/null; exit 3", "exit code 3"),
        ("cat >/dev/null; echo nonsense", "its answer is not JSON"),
    ],
)
def test_a_broken_helper_fails_the_pull(tmp_path: Path, helper: Path, text: str, words: str) -> None:
    script(helper, text)
    with pytest.raises(FailedPrecondition, match=words):
        auth.from_docker_config(config(tmp_path, {"credsStore": "test"}), "x.example")


def test_a_missing_helper_fails_the_pull(tmp_path: Path) -> None:
    with pytest.raises(FailedPrecondition, match="docker-credential-absent: not found in PATH"):
        auth.from_docker_config(config(tmp_path, {"credsStore": "absent"}), "x.example")


# transport


@pytest.mark.parametrize(
    ("host", "insecure"),
    [
        ("127.0.0.1:5000", True),
        ("localhost", True),
        ("[::1]:5000", True),
        ("listed.example:80", True),
        ("listed.example", False),
        ("10.231.7.1:5000", True),
        ("10.232.0.1:5000", False),
        ("127.0.0.1.evil.example", False),
    ],
)
def test_who_may_be_spoken_to_without_tls(host: str, insecure: bool) -> None:
    transport = Transport(quick(insecure=("listed.example:80", "10.231.0.0/16")))
    assert transport.is_insecure(host) is insecure


def test_a_missing_ca_file_is_named(tmp_path: Path) -> None:
    transport = Transport(quick(ca={"x.example": str(tmp_path / "none.pem")}))
    with pytest.raises(NetworkError, match=r"certificate authorities in .*none\.pem"):
        transport.request("GET", "https://x.example/v2/", {})
