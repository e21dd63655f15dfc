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

HUB = "https://index.docker.io/v1/"


def registry_host(name: str) -> str:
    """The key of a repository's registry in config.json: "quay.io", "localhost:5000", Docker Hub's URL."""
    first, slash, _ = name.partition("/")
    if not slash or not ("." in first or ":" in first or first == "localhost") or first == "docker.io":
        return HUB
    return first


def registry_auth(name: str) -> str:
    """The X-Registry-Auth header for a repository: base64url JSON, "{}" for an anonymous pull.

    Raises InvalidArgument for a configuration that cannot be read.
    """
    found = _credentials(userconfig.load(), registry_host(name))
    return (
        binascii.b2a_base64(json.dumps(found).encode(), newline=False).decode().translate({43: "-", 47: "_"})
    )


def registry_config() -> str:
    """The X-Registry-Config header: the credentials for all registries that the configuration names, as a
    build may need any. Raises InvalidArgument for a configuration that cannot be read."""
    config = userconfig.load()
    hosts = {*(config.get("auths") or {}), *(config.get("credHelpers") or {})}
    found = {host: _credentials(config, host) for host in sorted(hosts)}
    known = json.dumps({host: entry for host, entry in found.items() if entry})
    return binascii.b2a_base64(known.encode(), newline=False).decode().translate({43: "-", 47: "_"})


def store(server: str, user: str, password: str) -> str:
    """Keep credentials, in the helper that is configured for the server or in the file; where they are
    then, "" for a helper. Raises InvalidArgument."""
    config = userconfig.load()
    helper = _helper(config, server)
    if helper:
        _call(helper, "store", json.dumps({"ServerURL": server, "Username": user, "Secret": password}))
        return ""
    packed = binascii.b2a_base64(f"{user}:{password}".encode(), newline=False).decode()
    userconfig.save({**config, "auths": {**(config.get("auths") or {}), server: {"auth": packed}}})
    return userconfig.path()


def erase(server: str) -> None:
    """Forget them, wherever they are. Raises InvalidArgument."""
    config = userconfig.load()
    helper = _helper(config, server)
    if helper:
        _call(helper, "erase", server)
    entries = {key: value for key, value in (config.get("auths") or {}).items() if key != server}
    if entries != (config.get("auths") or {}):
        userconfig.save({**config, "auths": entries})


def _helper(config: dict[str, Any], server: str) -> str:
    return str((config.get("credHelpers") or {}).get(server) or config.get("credsStore") or "")


def _credentials(config: dict[str, Any], host: str) -> dict[str, str]:
    helper = _helper(config, host)
    if helper:
        return _ask(helper, host)
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
    program = f"docker-credential-{helper}"
    status, output = _run(helper, "get", host)
    if status:
        return {}
    try:
        answer = json.loads(output)
        user, secret = str(answer["Username"]), str(answer["Secret"])
    except (InvalidArgument, KeyError, TypeError):
        raise InvalidArgument(f"{program} answered with something that is no credential") from None
    if user == "<token>":
        return {"identitytoken": secret, "serveraddress": host}
    return {"username": user, "password": secret, "serveraddress": host}


def _call(helper: str, verb: str, text: str) -> None:
    status, output = _run(helper, verb, text)
    if status:
        said = output.decode(errors="replace").strip().partition("\n")[0]
        raise InvalidArgument(f"docker-credential-{helper} {verb}: {said or f'exit code {status}'}")


def _run(helper: str, verb: str, text: str) -> tuple[int, bytes]:
    """(exit code, output) of a credential helper."""
    import subprocess

    if "/" in helper:
        raise InvalidArgument(f"the name of a credential helper has no slash: {helper!r}")
    program = f"docker-credential-{helper}"
    try:
        done = subprocess.run([program, verb], input=text.encode(), capture_output=True, timeout=60)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise InvalidArgument(f"cannot run {program}: {error}") from None
    return done.returncode, done.stdout
