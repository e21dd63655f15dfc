"""What registries say when they refuse, in dockerd's words and our classes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from http import HTTPStatus

import msgspec

from nagaya.errors import NagayaError, NotFound, PermissionDenied, Unauthenticated, Unavailable
from nagaya.oci.reference import Reference


class _Error(msgspec.Struct):
    code: str = ""
    message: str = ""


class _Errors(msgspec.Struct):
    errors: list[_Error] | None = None


def refused_pull(
    reference: Reference,
    status: int,
    body: bytes,
    path: str = "",
    *,
    logged_in: bool = False,
    headers: Mapping[str, str] | None = None,
) -> NagayaError:
    """Why a GET of `path` below the repository got that status, body and headers. logged_in: with
    credentials."""
    code, message, text = _parse(body)
    name = reference.familiar_name
    if status in (401, 403) or code in ("DENIED", "UNAUTHORIZED"):
        text = text or (
            "unauthorized: authentication required"
            if status == 401
            else "denied: requested access to the resource is denied"
        )
        line = f"pull access denied for {name}, repository does not exist or may require 'docker login'"
        # dockerd answers 404 where it cannot tell a missing repository from a hidden one
        kind: type[NagayaError] = NotFound
        if logged_in and code != "DENIED":
            kind = Unauthenticated if status == 401 else PermissionDenied
        return kind(f"{line}: {text}", subject=name)
    if status == 404:
        if code == "NAME_UNKNOWN":
            return NotFound(f"repository {name} not found: {text}", subject=name)
        if path.startswith("manifests/"):
            shown = reference.familiar
            return NotFound(
                f"manifest for {shown} not found: {text or 'manifest unknown: manifest unknown'}",
                subject=shown,
            )
        return NotFound(f"{path} of {name} not found: {text or 'blob unknown to registry'}", subject=name)
    if status == 429:
        return _too_many(message + rate_limit(headers or {}), name)
    said = f": {text}" if text else ""
    return Unavailable(f"received unexpected HTTP status: {status_line(status)}{said}", subject=name)


def refused_push(reference: Reference, status: int, body: bytes) -> NagayaError:
    """Why something that would have changed the repository got that status and body."""
    code, message, text = _parse(body)
    name = reference.familiar_name
    if status == 401 or code == "UNAUTHORIZED":
        return Unauthenticated(text or "unauthorized: authentication required", subject=name)
    if status == 403 or code == "DENIED":
        return PermissionDenied(text or "denied: requested access to the resource is denied", subject=name)
    if status == 429:
        return _too_many(message, name)
    if status == 404 and code == "NAME_UNKNOWN":
        return NotFound(text, subject=name)
    said = f": {text}" if text else ""
    return Unavailable(f"received unexpected HTTP status: {status_line(status)}{said}", subject=name)


def rate_limit(headers: Mapping[str, str]) -> str:
    """What a registry says of how much it serves (docs.docker.com, "Docker Hub pull usage and limits"):
    " (limit: 100 in 21600 s, left: 76, try again in 30 s)", or nothing."""
    found = []
    for name, header in (("limit", "RateLimit-Limit"), ("left", "RateLimit-Remaining")):
        match = re.fullmatch(r"(\d{1,9})(?:;w=(\d{1,9}))?", headers.get(header, ""))
        if match:
            window = f" in {match[2]} s" if match[2] and name == "limit" else ""
            found.append(f"{name}: {match[1]}{window}")
    after = headers.get("Retry-After", "")
    if after.isdigit() and len(after) < 10:
        found.append(f"try again in {after} s")
    return f" ({', '.join(found)})" if found else ""


def _too_many(message: str, name: str) -> NagayaError:
    return Unavailable(
        f"toomanyrequests: {message or 'the registry limits the rate of requests'}", subject=name
    )


def _parse(body: bytes) -> tuple[str, str, str]:
    """(code, message, both for people) of the first error of an error document; printable and bounded."""
    try:
        errors = msgspec.json.decode(body, type=_Errors).errors
    except (msgspec.MsgspecError, RecursionError):
        return "", "", ""
    first = errors[0] if errors else _Error()
    code, message = (
        "".join(c if c.isprintable() else " " for c in t[:500]).strip() for t in (first.code, first.message)
    )
    code = code[:64]
    return code, message, ": ".join(t for t in (code.lower().replace("_", " "), message) if t)


def status_line(status: int) -> str:
    """ "404 Not Found"."""
    try:
        return f"{status} {HTTPStatus(status).phrase}"
    except ValueError:
        return str(status)
