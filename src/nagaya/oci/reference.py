"""Image references with Docker's normalisation.

The grammar is that of github.com/distribution/reference (reference.go), the rules for short names
("busybox" is docker.io/library/busybox:latest) those of its normalize.go, the messages dockerd's.
"""

from __future__ import annotations

import re

import msgspec

from nagaya.errors import InvalidArgument
from nagaya.oci import digest as digests

DEFAULT_DOMAIN = "docker.io"
DEFAULT_TAG = "latest"
_LEGACY_DOMAIN = "index.docker.io"
_OFFICIAL = "library/"
_MAX_NAME = 255  # of path, as reference.go has it

_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_LABEL = r"(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])"
_DOMAIN = re.compile(rf"(?:{_LABEL}(?:\.{_LABEL})*|\[[a-fA-F0-9:]+\])(?::[0-9]+)?", re.ASCII)
_PATH = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*", re.ASCII)
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}", re.ASCII)
_IDENTIFIER = re.compile(r"[a-f0-9]{64}")


class Reference(msgspec.Struct, frozen=True):
    """A parsed reference. tag and digest are "" when absent; both may be given (the digest wins)."""

    domain: str
    path: str
    tag: str = ""
    digest: str = ""

    @property
    def name(self) -> str:
        """Canonical repository: "docker.io/library/busybox"."""
        return f"{self.domain}/{self.path}"

    @property
    def familiar_name(self) -> str:
        """The repository as people write it: "busybox"."""
        if self.domain != DEFAULT_DOMAIN:
            return self.name
        bare = self.path.removeprefix(_OFFICIAL)
        return bare if "/" not in bare else self.path

    @property
    def canonical(self) -> str:
        """Everything spelled out: "docker.io/library/busybox:latest"."""
        return self.name + self._suffix()

    @property
    def familiar(self) -> str:
        """As Docker prints it: "busybox:latest"."""
        return self.familiar_name + self._suffix()

    @property
    def target(self) -> str:
        """What a registry is asked for: the digest, else the tag."""
        return self.digest or self.tag

    def _suffix(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{tag}@{self.digest}" if self.digest else tag

    def tagged(self) -> Reference:
        """With the tag "latest" when it has neither tag nor digest."""
        if self.tag or self.digest:
            return self
        return msgspec.structs.replace(self, tag=DEFAULT_TAG)

    def with_tag(self, tag: str) -> Reference:
        """The same repository with a tag, without a digest. Raises InvalidArgument."""
        if not valid_tag(tag):
            raise _invalid(tag)
        return Reference(self.domain, self.path, tag)

    def with_digest(self, digest: str) -> Reference:
        """The same repository pinned to a digest, without a tag. Raises InvalidArgument."""
        digests.parse(digest)
        return Reference(self.domain, self.path, "", digest)


def parse(text: str) -> Reference:
    """Parse what a user wrote; no tag is added (see `Reference.tagged`).

    Raises InvalidArgument with dockerd's message ("invalid reference format").
    """
    if not isinstance(text, str) or len(text) > 2048:
        raise _invalid(str(text)[:200])
    if _IDENTIFIER.fullmatch(text):
        raise InvalidArgument(
            f"invalid repository name ({text}), cannot specify 64-byte hexadecimal strings", subject=text
        )
    rest, at, digest = text.partition("@")
    if at and not digests.is_digest(digest):
        raise _invalid(text)
    slash = rest.rfind("/")
    colon = rest.find(":", slash + 1)
    tag = ""
    if colon >= 0:
        rest, tag = rest[:colon], rest[colon + 1 :]
        if not _TAG.fullmatch(tag):
            raise _invalid(text)
    domain, path = _split_domain(rest)
    if not _DOMAIN.fullmatch(domain):
        raise _invalid(text)
    if not _PATH.fullmatch(path):
        if _PATH.fullmatch(path.lower()):
            raise InvalidArgument(
                f"invalid reference format: repository name ({path}) must be lowercase", subject=text
            )
        raise _invalid(text)
    if len(path) > _MAX_NAME:
        raise InvalidArgument(f"repository name must not be more than {_MAX_NAME} characters", subject=text)
    return Reference(domain, path, tag, digest)


def parse_tagged(text: str) -> Reference:
    """`parse`, with the tag "latest" when neither tag nor digest was given."""
    return parse(text).tagged()


def valid_tag(tag: str) -> bool:
    """Does the tag obey the grammar?"""
    return _TAG.fullmatch(tag) is not None


def _split_domain(name: str) -> tuple[str, str]:
    first, slash, rest = name.partition("/")
    is_host = "." in first or ":" in first or first == "localhost" or first.lower() != first
    domain, path = (first, rest) if slash and is_host else (DEFAULT_DOMAIN, name)
    if domain == _LEGACY_DOMAIN:
        domain = DEFAULT_DOMAIN
    if domain == DEFAULT_DOMAIN and path and "/" not in path:
        path = _OFFICIAL + path
    return domain, path


def _invalid(text: str) -> InvalidArgument:
    return InvalidArgument("invalid reference format", subject=text)
