"""Digests: `algorithm:hex` (OCI image-spec, descriptor.md, "Digests").

A digest from a registry is a string from a stranger that becomes a file name: it is checked here
before every use (CVE-2024-3727). Only the registered algorithms are known, in lower case.
"""

from __future__ import annotations

import hashlib
import re
from typing import TYPE_CHECKING

from nagaya.errors import InvalidArgument

if TYPE_CHECKING:
    from hashlib import _Hash

ALGORITHMS = ("sha256", "sha512")
_DIGEST = re.compile(r"(?:sha256:[0-9a-f]{64}|sha512:[0-9a-f]{128})")


def is_digest(text: str) -> bool:
    """Does the text obey the grammar, whole?"""
    return _DIGEST.fullmatch(text) is not None


def parse(digest: str) -> tuple[str, str]:
    """("sha256", hex) of the digest.

    Raises InvalidArgument when it is not a digest of a registered algorithm.
    """
    if not isinstance(digest, str) or not is_digest(digest):
        raise InvalidArgument(f"invalid digest {str(digest)[:160]!r}", subject=str(digest)[:160])
    algorithm, _, encoded = digest.partition(":")
    return algorithm, encoded


def short(digest: str) -> str:
    """The first 12 hex characters: how Docker shows layers and images."""
    return parse(digest)[1][:12]


def hasher(digest: str) -> _Hash:
    """A fresh hash object of the digest's algorithm."""
    return hashlib.new(parse(digest)[0], usedforsecurity=True)


def of(data: bytes) -> str:
    """The canonical (sha256) digest of data."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


def matches(data: bytes, digest: str) -> bool:
    """Is digest the digest of data? Raises InvalidArgument when it is none at all."""
    check = hasher(digest)
    check.update(data)
    return check.hexdigest() == parse(digest)[1]
