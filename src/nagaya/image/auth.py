"""Whose credentials for which registry: the request's own, else ~/.docker/config.json.

The file is that of Docker's CLI (docs.docker.com, "docker login"): `auths`, `credsStore`,
`credHelpers`. The rule that matters: what is configured for a registry is used or the pull fails. A
broken file or helper never means "then try without", nor another registry's entry (CVE-2021-41092).
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import subprocess
from urllib.parse import urlsplit

import msgspec

from nagaya.errors import FailedPrecondition, InvalidArgument

DOCKER_HUB = "docker.io"
_HUB_KEY = "https://index.docker.io/v1/"
_HUB_HOSTS = frozenset(("docker.io", "index.docker.io", "registry-1.docker.io"))
_HELPER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", re.ASCII)
_NOT_FOUND = "credentials not found in native keychain"  # docker-credential-helpers, credentials/error.go
_MAX_FILE = 1 << 20
_TIMEOUT = 30.0


class RegistryAuth(msgspec.Struct, frozen=True):
    """Credentials for one registry: name and password, or an identity (refresh) token, or a token
    that the registry itself takes. All empty: anonymous."""

    username: str = ""
    password: str = ""
    identity_token: str = ""
    registry_token: str = ""

    def __bool__(self) -> bool:
        return bool(self.username or self.identity_token or self.registry_token)

    def __repr__(self) -> str:
        return f"RegistryAuth(username={self.username!r}, ...)"  # never into a log


class _Entry(msgspec.Struct, rename="lower"):
    auth: str = ""
    username: str = ""
    password: str = ""
    identitytoken: str = ""
    registrytoken: str = ""


class _File(msgspec.Struct, rename="camel"):
    auths: dict[str, _Entry] | None = None
    creds_store: str = ""
    cred_helpers: dict[str, str] | None = None


class _Answer(msgspec.Struct, rename="pascal"):
    username: str = ""
    secret: str = ""


def from_docker_config(path: str, domain: str) -> RegistryAuth:
    """The credentials that the file holds for a registry's domain; empty ones when it has none.

    Raises InvalidArgument when the file is broken, FailedPrecondition when the helper is.
    """
    if not path:
        return RegistryAuth()
    try:
        with open(os.path.expanduser(path), "rb") as file:
            data = file.read(_MAX_FILE + 1)
    except (FileNotFoundError, NotADirectoryError):
        return RegistryAuth()
    except OSError as error:
        raise FailedPrecondition(f"{path}: {os.strerror(error.errno or 0).lower()}", subject=path) from None
    if len(data) > _MAX_FILE:
        raise InvalidArgument(f"{path} is over {_MAX_FILE} bytes", subject=path)
    try:
        file_ = msgspec.json.decode(data or b"{}", type=_File)
    except (msgspec.MsgspecError, RecursionError) as error:
        raise InvalidArgument(f"{path} is not valid: {error}", subject=path) from None
    for key, helper in (file_.cred_helpers or {}).items():
        if _host(key) == _host(domain):
            return _ask(helper, key if domain != DOCKER_HUB else _HUB_KEY)
    if file_.creds_store:
        return _ask(file_.creds_store, _HUB_KEY if domain == DOCKER_HUB else domain)
    entries = file_.auths or {}
    for key in (_HUB_KEY,) if domain == DOCKER_HUB else (domain, f"https://{domain}", f"http://{domain}"):
        if key in entries:
            return _decode(entries[key], path, key)
    for key, entry in entries.items():
        if _host(key) == _host(domain):
            return _decode(entry, path, key)
    return RegistryAuth()


def _host(key: str) -> str:
    """Keys are hosts, or URLs with scheme and path; Docker Hub has several names."""
    host = (urlsplit(key).netloc if "://" in key else key.partition("/")[0]).lower()
    return DOCKER_HUB if host in _HUB_HOSTS else host


def _decode(entry: _Entry, path: str, key: str) -> RegistryAuth:
    username, password = entry.username, entry.password
    if entry.auth:
        try:
            text = base64.b64decode(entry.auth, validate=True).decode()
        except (binascii.Error, UnicodeDecodeError):
            text = ""
        username, colon, password = text.rstrip("\0").partition(":")
        if not colon or not username:
            raise InvalidArgument(
                f"{path}: auths.{key}.auth is not base64 of name:password", subject=f"auths.{key}.auth"
            )
    return RegistryAuth(username, password, entry.identitytoken, entry.registrytoken)


def _ask(helper: str, server: str) -> RegistryAuth:
    if not _HELPER.fullmatch(helper):
        raise InvalidArgument(f"invalid credential helper name {helper[:80]!r}", subject="credHelpers")
    program = f"docker-credential-{helper}"
    # nothing of our environment but what finding programs and the user's files needs
    environment = {k: os.environ[k] for k in ("PATH", "HOME", "LANG") if k in os.environ}
    try:
        result = subprocess.run(
            [program, "get"],
            input=server.encode(),
            capture_output=True,
            timeout=_TIMEOUT,
            env=environment,
            cwd="/",
        )
    except FileNotFoundError:
        raise _broken(program, "not found in PATH") from None
    except subprocess.TimeoutExpired:
        raise _broken(program, f"no answer within {_TIMEOUT:.0f} s") from None
    except OSError as error:
        raise _broken(program, os.strerror(error.errno or 0).lower()) from None
    output = result.stdout[:_MAX_FILE]
    if result.returncode != 0:
        said = (output or result.stderr[:400]).decode("utf-8", "replace").strip()
        if said == _NOT_FOUND:
            return RegistryAuth()
        raise _broken(program, said.split("\n")[0][:200] or f"exit code {result.returncode}")
    try:
        answer = msgspec.json.decode(output, type=_Answer)
    except msgspec.MsgspecError:
        raise _broken(program, "its answer is not JSON with Username and Secret") from None
    if answer.username == "<token>":
        return RegistryAuth(identity_token=answer.secret)
    return RegistryAuth(answer.username, answer.secret)


def _broken(program: str, why: str) -> FailedPrecondition:
    return FailedPrecondition(
        f"credential helper {program}: {why}", subject=program, step="get registry credentials"
    )
