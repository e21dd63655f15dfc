"""A client of OCI distribution registries (distribution-spec 1.1), the writing half.

A blob that is there is not sent; one that another repository of the registry has is mounted. The
rest goes up in one piece, and after a break from where the registry got to; in smaller pieces when
a piece is too big for something on the way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from urllib.parse import quote, urlsplit

from nagaya.errors import DataLoss, NagayaError, Unauthenticated, Unavailable
from nagaya.image.complaints import refused_push
from nagaya.image.session import MAX_BODY, Session, join, pause_asked
from nagaya.image.transport import Answer, RegistryConfig
from nagaya.oci.manifest import Descriptor

_AT_ONCE = 64 << 10  # a blob up to that needs no second request
_SMALLER = 8 << 20  # first try after "too large"
_SMALLEST = 1 << 20
_DATA = {"Content-Type": "application/octet-stream"}

Read = Callable[[int], Iterator[bytes]]  # a blob's bytes from an offset on
Seen = Callable[[int], None]  # how many bytes are up


class _Interrupted(Exception):
    """A piece did not get through, whole; wait: seconds that the registry asked for."""

    def __init__(self, cause: NagayaError, wait: float) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.wait = wait


class Uploads:
    """Puts blobs and manifests into the repository of a session. Thread-safe."""

    def __init__(self, session: Session, config: RegistryConfig) -> None:
        self._session = session
        self._config = config

    def blob(self, descriptor: Descriptor, read: Read, sources: Sequence[str], seen: Seen) -> str:
        """Have the blob there; how it came to be, in dockerd's words. sources: repositories of the same
        registry that may have it.

        Raises Unauthenticated, PermissionDenied, Unavailable, DataLoss (the registry found another
        digest).
        """
        if self._has(descriptor):
            return "Layer already exists"
        location = ""
        for source in sources:
            query = f"blobs/uploads/?mount={quote(descriptor.digest)}&from={quote(source, safe='')}"
            answer = self._ask("POST", query)
            answer.close()
            if answer.status == 201:
                return f"Mounted from {source}"
            if location:
                self._cancel(location)
            location = self._location(answer) if answer.status == 202 else ""
        self._upload(descriptor, read, location, seen)
        return "Pushed"

    def manifest(self, data: bytes, media_type: str, target: str, digest: str) -> None:
        """Put a manifest or an index under a tag or its digest. Raises as `blob`."""
        path = f"manifests/{target}"
        answer = self._session.request(
            self._session.home, "PUT", path, {"Content-Type": media_type}, lambda: data
        )
        said = answer.headers.get("Docker-Content-Digest", "")
        if answer.status not in (200, 201, 202):
            raise self._refused(answer)
        answer.close()
        if said.startswith("sha256:") and said != digest:
            raise DataLoss(f"the registry stored the manifest as {said}, not {digest}", subject=digest)

    def _ask(self, method: str, target: str) -> Answer:
        headers = {"Content-Length": "0"} if method == "POST" else {}
        return self._session.request(self._session.home, method, target, headers)

    def _has(self, descriptor: Descriptor) -> bool:
        answer = self._ask("HEAD", f"blobs/{descriptor.digest}")
        if answer.status == 404:
            answer.close()
            return False
        if answer.status != 200:
            raise self._refused(answer)
        answer.close()
        return True

    # one upload

    def _upload(self, descriptor: Descriptor, read: Read, location: str, seen: Seen) -> None:
        sent, chunk, left = 0, descriptor.size, self._config.retries
        resumed = False
        while True:
            try:
                if not location:
                    sent, location, least = self._begin()
                    chunk = max(chunk, least)
                if descriptor.size > _AT_ONCE:
                    while sent < descriptor.size:
                        location = self._piece(descriptor, read, location, sent, chunk, seen)
                        sent = min(sent + chunk, descriptor.size)
                self._finish(descriptor, read, location, seen)
                return
            except _TooLarge as error:
                if chunk <= _SMALLEST:
                    raise error.cause from None
                chunk = min(_SMALLER, max(chunk // 2, _SMALLEST))
                location = ""
            except DataLoss:
                if not resumed:
                    raise
                location, resumed = "", False  # what it had of the first try was not ours
            except _Interrupted as error:
                before = sent
                self._session.sleep(max(error.wait, self._config.backoff))
                if self._has(descriptor):  # only its answer was lost
                    return
                sent, location = self._reached(location) if location else (0, "")
                resumed = resumed or sent > 0
                left = self._config.retries if sent > before else left - 1
                if left < 0:
                    raise error.cause from None

    def _begin(self) -> tuple[int, str, int]:
        """(0, where to send it, the least size of a piece but the last)"""
        answer = self._ask("POST", "blobs/uploads/")
        if answer.status != 202:
            raise self._refused(answer)
        least = answer.headers.get("OCI-Chunk-Min-Length", "")
        answer.close()
        return 0, self._location(answer), int(least) if least.isdigit() and len(least) < 12 else 0

    def _piece(
        self, descriptor: Descriptor, read: Read, location: str, start: int, chunk: int, seen: Seen
    ) -> str:
        end = min(start + chunk, descriptor.size)
        headers = {**_DATA, "Content-Length": str(end - start), "Content-Range": f"{start}-{end - 1}"}
        answer = self._send("PATCH", location, headers, lambda: _told(read(start), start, end, seen))
        if answer.status not in (201, 202, 204):
            raise self._broken(answer)
        answer.close()
        return self._location(answer)

    def _finish(self, descriptor: Descriptor, read: Read, location: str, seen: Seen) -> None:
        size = descriptor.size if descriptor.size <= _AT_ONCE else 0
        url = f"{location}{'&' if urlsplit(location).query else '?'}digest={quote(descriptor.digest)}"
        headers = {**_DATA, "Content-Length": str(size)}
        answer = self._send("PUT", url, headers, lambda: _told(read(0), 0, size, seen) if size else b"")
        if answer.status == 400:
            answer.close()
            raise DataLoss(
                "the registry says that the blob's digest is another: pull or load the image again",
                subject=descriptor.digest,
                step="push layer",
            )
        if answer.status not in (200, 201, 204):
            raise self._broken(answer)
        answer.close()

    def _send(
        self, method: str, url: str, headers: dict[str, str], body: Callable[[], bytes | Iterator[bytes]]
    ) -> Answer:
        try:
            return self._session.request(self._session.home, method, url, headers, body, retries=0)
        except Unavailable as error:
            raise _Interrupted(error, 0.0) from None

    def _broken(self, answer: Answer) -> Exception:
        """What an answer that is no success means for the upload."""
        status, wait = answer.status, pause_asked(answer)
        error = self._refused(answer)
        if status == 413:
            return _TooLarge(error, 0.0)
        # 404 and 416: the registry forgot it, or got further than we know
        if status >= 500 or status in (404, 408, 416, 429):
            return _Interrupted(error, wait)
        return error

    def _reached(self, location: str) -> tuple[int, str]:
        """(how many bytes are there, where the rest goes); (0, "") when it must be begun again."""
        answer = self._ask("GET", location)
        answer.close()
        match = re.fullmatch(r"(?:bytes=)?0-(\d{1,15})", answer.headers.get("Range", ""))
        if answer.status not in (200, 202, 204) or match is None or match[1] == "0":
            return 0, ""  # "0-0" says both nothing and one byte
        return int(match[1]) + 1, self._location(answer) if answer.headers.get("Location") else location

    def _cancel(self, location: str) -> None:
        try:
            self._ask("DELETE", location).close()
        except Unavailable:
            pass  # it forgets it some day

    def _location(self, answer: Answer) -> str:
        location = join(answer.url, answer.headers.get("Location", ""))
        before, after = urlsplit(answer.url), urlsplit(location)
        insecure = after.scheme == "http" and self._session.transport.is_insecure(after.netloc)
        if not answer.headers.get("Location") or not (after.scheme in ("https", before.scheme) or insecure):
            raise Unavailable(f"upload to {location[:200]!r} refused", step="push")
        return location

    def _refused(self, answer: Answer) -> NagayaError:
        challenge = answer.headers.get("WWW-Authenticate", "").strip().lower()
        body = self._session.read(answer, MAX_BODY)
        if answer.status == 401 and challenge.startswith("basic") and not self._session.home.credentials():
            return Unauthenticated("no basic auth credentials", subject=self._session.reference.familiar_name)
        return refused_push(self._session.reference, answer.status, body)


class _TooLarge(_Interrupted):
    """Something on the way takes no piece of that size."""


def _told(pieces: Iterator[bytes], start: int, end: int, seen: Seen) -> Iterator[bytes]:
    """The bytes from start to end, each counted once it is on its way."""
    at = start
    for piece in pieces:
        part = piece[: end - at]
        if part:
            yield part
        at += len(part)
        seen(at)
        if at >= end:
            return
