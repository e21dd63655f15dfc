"""The user's credentials for a registry: docker's config.json and its credential helpers.

The command reads them, not the daemon: they are the caller's, and stay so (X-Registry-Auth).
"""

from __future__ import annotations

import binascii

from nagaya.cli import userconfig
from nagaya.errors import InvalidArgument
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

_HUB = "https://index.docker.io/v1/"


def registry_host(name: str) -> str:
    """The key of a repository's registry in config.json: "quay.io", "localhost:5000", Docker Hub's URL."""
    first, slash, _ = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost") or first == "docker.io":
        return _HUB
    return first


def registry_auth(name: str) -> str:
    """The X-Registry-Auth header for a repository: base64url JSON, "{}" for an anonymous pull.

    Raises InvalidArgument for a configuration that cannot be read.
    """
    found = _credentials(userconfig.load(), registry_host(name))
    return (
        binascii.b2a_base64(json.dumps(found).encode(), newline=False).decode().translate({43: "-", 47: "_"})
    )


def _credentials(config: dict[str, Any], host: str) -> dict[str, str]:
    helper = (config.get("credHelpers") or {}).get(host) or config.get("credsStore")
    if helper:
        return _ask(str(helper), host)
    entries = config.get("auths") or {}
    entry = next(
        (entries[key] for key in (host, f"https://{host}", f"https://{host}/v1/") if key in entries), None
    )
    if not isinstance(entry, dict):
        return {}
    if entry.get("identitytoken"):
        return {"identitytoken": str(entry["identitytoken"]), "serveraddress": host}
    try:
        user, _, password = binascii.a2b_base64(str(entry.get("auth", ""))).decode().partition(":")
    except (binascii.Error, UnicodeDecodeError):
        raise InvalidArgument(f"the entry of {host} in docker's config.json is no base64") from None
    user, password = user or str(entry.get("username", "")), password or str(entry.get("password", ""))
    return {"username": user, "password": password, "serveraddress": host} if user else {}


def _ask(helper: str, host: str) -> dict[str, str]:
    """docker-credential-HELPER get: the host on stdin, JSON on stdout; exit code 1 means it knows none."""
    import subprocess

    if "/" in helper:
        raise InvalidArgument(f"the name of a credential helper has no slash: {helper!r}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, "get"], input=host.encode(), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidArgument(f"cannot run {program}: {error}") from None
    if done.returncode:
        return {}
    try:
        answer = json.loads(done.stdout)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (InvalidArgument, KeyError, TypeError):
        raise InvalidArgument(f"{program} answered with something that is no credential") from None
    if user == "<token>":
        return {"identitytoken": secret, "serveraddress": host}
    return {"username": user, "password": secret, "serveraddress": host}
