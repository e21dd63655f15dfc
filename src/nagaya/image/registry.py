"""A client of OCI distribution registries (distribution-spec 1.1), the reading half.

Nothing here is believed: bodies are bounded, a manifest is checked against its digest, blobs are
checked where they are written (`image.content`). Requests are `image.session`'s.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Sequence
from urllib.parse import urlsplit

import msgspec

from nagaya.errors import DataLoss, InvalidArgument, NagayaError, NotFound, Unavailable
from nagaya.image.complaints import rate_limit, refused_pull, status_line
from nagaya.image.session import MAX_BODY, Endpoint, Session, follow, join
from nagaya.image.transport import Answer, NetworkError
from nagaya.oci import digest as digests
from nagaya.oci import manifest as manifests
from nagaya.oci.reference import valid_tag

log = logging.getLogger(__name__)

_MAX_TAGS = 10_000
NEXT_PAGE = re.compile(r"<[^<>?]*\?([^<>\s]{1,2000})>\s*;\s*rel=\"?next\"?")
_PIECE = 256 << 10


class _Tags(msgspec.Struct):
    tags: list[str] | None = None


class Fetched(msgspec.Struct, frozen=True):
    """A manifest as it came, verified against its digest."""

    data: bytes
    digest: str
    media_type: str


class Registry:
    """The repository of a session. Thread-safe."""

    def __init__(self, session: Session) -> None:
        self._session = session

    @property
    def name(self) -> str:
        """The repository, canonical."""
        return self._session.reference.name

    @property
    def mirrored(self) -> bool:
        """See `Session`."""
        return self._session.mirrored

    def distrust_mirrors(self) -> None:
        """See `Session`."""
        self._session.distrust_mirrors()

    def manifest(self, target: str) -> Fetched:
        """The manifest or index of a tag or digest.

        Raises NotFound, Unauthenticated, PermissionDenied, Unavailable, DataLoss (a digest that
        does not match), InvalidArgument (too big).
        """

        def fetch(endpoint: Endpoint) -> Fetched:
            path = f"manifests/{target}"
            answer = self._session.get(endpoint, path, {"Accept": manifests.ACCEPT})
            if answer.status != 200:
                raise self._failure(answer, endpoint, path)
            if "RateLimit-Remaining" in answer.headers:
                log.info("%s%s", self.name, rate_limit(answer.headers))
            data = self._session.read(answer, manifests.MAX_MANIFEST)
            if len(data) > manifests.MAX_MANIFEST:
                raise InvalidArgument(
                    f"the manifest is over the limit of {manifests.MAX_MANIFEST} bytes", subject="manifest"
                )
            said = answer.headers.get("Docker-Content-Digest", "")
            wanted = target if digests.is_digest(target) else digests.of(data)
            for claimed in (wanted, said if said.startswith("sha256:") else wanted):
                if not digests.matches(data, claimed):
                    raise DataLoss(
                        f"the registry's manifest has digest {digests.of(data)}, not {claimed}",
                        subject=claimed,
                        step="fetch manifest",
                    )
            return Fetched(data, wanted, answer.headers.get("Content-Type", ""))

        return self._session.each(fetch, "pull" if digests.is_digest(target) else "resolve")

    def tags(self) -> Sequence[str]:
        """The repository's tags (distribution-spec, "Listing Tags"), page by page.

        Raises like `manifest`, and InvalidArgument when they are no tags or too many.
        """

        def fetch(endpoint: Endpoint) -> list[str]:
            found: dict[str, None] = {}
            path = "tags/list"
            while path:
                answer = self._session.get(endpoint, path, {})
                if answer.status != 200:
                    raise self._failure(answer, endpoint, path)
                body = self._session.read(answer, MAX_BODY)
                try:
                    page = msgspec.json.decode(body, type=_Tags).tags or []
                except (msgspec.MsgspecError, RecursionError):
                    raise InvalidArgument(
                        "the registry's list of tags is not valid", subject="tags"
                    ) from None
                before = len(found)
                found.update(dict.fromkeys(page))
                if len(found) > _MAX_TAGS or not all(map(valid_tag, page)):
                    raise InvalidArgument(
                        f"the registry's list of tags is not valid, or has more than {_MAX_TAGS}",
                        subject="tags",
                    )
                next_page = NEXT_PAGE.fullmatch(answer.headers.get("Link", "").strip())
                # a page without news would be asked for ever
                path = f"tags/list?{next_page[1]}" if next_page and len(found) > before else ""
            return list(found)

        return self._session.each(fetch, "resolve")

    def blob(self, descriptor: manifests.Descriptor, offset: int = 0) -> Iterator[bytes]:
        """The blob's bytes from offset on, in pieces, unverified.

        Raises like `manifest`; a connection that breaks while iterating is Unavailable: ask again
        with a new offset.
        """
        path = f"blobs/{descriptor.digest}"

        def fetch(endpoint: Endpoint) -> Iterator[bytes]:
            answer = self._session.get(endpoint, path, {"Range": f"bytes={offset}-"} if offset else {})
            if offset and answer.status == 416:
                answer.close()
                answer = self._session.get(endpoint, path, {})
            if answer.status not in (200, 206):
                raise self._failure(answer, endpoint, path)
            return self._body(answer, offset, descriptor)

        try:
            return self._session.each(fetch)
        except NotFound:
            if not manifests.is_foreign(descriptor):
                raise
        return self._foreign(descriptor, offset)

    # bodies

    def _body(self, answer: Answer, offset: int, descriptor: manifests.Descriptor) -> Iterator[bytes]:
        first = 0
        if answer.status == 206:
            match = re.fullmatch(r"bytes (\d{1,19})-\d*/(?:\d+|\*)", answer.headers.get("Content-Range", ""))
            if match is None or int(match[1]) > offset:
                answer.close()
                raise DataLoss(
                    "the registry answered with a range that was not asked for",
                    subject=descriptor.digest,
                    step="download",
                )
            first = int(match[1])
        length = answer.headers.get("Content-Length", "")
        if length.isdigit() and first + int(length[:20]) != descriptor.size:
            answer.close()
            raise DataLoss(
                f"the registry's blob has {first + int(length[:20])} bytes, its descriptor says "
                f"{descriptor.size}",
                subject=descriptor.digest,
                step="download",
            )

        def run() -> Iterator[bytes]:
            skip = offset - first
            try:
                for piece in answer.pieces(_PIECE):
                    if skip:
                        cut = min(skip, len(piece))
                        skip -= cut
                        piece = piece[cut:]
                    if piece:
                        yield piece
            except NetworkError as error:
                raise Unavailable(str(error), subject=descriptor.digest, step="download") from None
            finally:
                answer.close()

        return run()

    def _foreign(self, descriptor: manifests.Descriptor, offset: int) -> Iterator[bytes]:
        """A layer that registries may not carry: from its own URLs, as anybody would fetch it."""
        last: NagayaError = NotFound(f"layer {descriptor.digest} is nowhere", subject=descriptor.digest)
        for url in (descriptor.urls or ())[:4]:
            url = join(url, "")
            parts = urlsplit(url)
            if parts.scheme != "https" and not (
                parts.scheme == "http" and self._session.transport.is_insecure(parts.netloc)
            ):
                last = InvalidArgument(f"layer URL {url[:200]!r} is not https", subject="layers.urls")
                continue
            headers = {"Range": f"bytes={offset}-"} if offset else {}
            try:
                answer = follow(self._session.transport, url, headers, {})
            except NetworkError as error:
                last = Unavailable(str(error), step="download")
                continue
            if answer.status in (200, 206):
                return self._body(answer, offset, descriptor)
            answer.close()
            last = NotFound(
                f'Get "{url[:200]}": HTTP status {answer.status}', subject=descriptor.digest, step="download"
            )
        raise last

    def _failure(self, answer: Answer, endpoint: Endpoint, path: str) -> NagayaError:
        """dockerd's words for what the registry said."""
        try:
            body = answer.read(MAX_BODY)
        except NetworkError:
            body = b""
        if answer.away:
            url, status = answer.url.partition("?")[0][:200], status_line(answer.status)
            return Unavailable(f'Get "{url}": {status} after a redirect', step="download")
        return refused_pull(
            self._session.reference,
            answer.status,
            body,
            path,
            logged_in=bool(endpoint.credentials()),
            headers=answer.headers,
        )
