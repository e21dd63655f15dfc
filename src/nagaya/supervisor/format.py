"""Log lines as dockerd's json-file driver writes them, or as kubelets read them, a whole buffer at a time.

Source of the format: moby daemon/logger/jsonfilelog/jsonlog (jsonlogbytes.go, time_marshalling.go)
and daemon/logger/copier.go: `{"log":"text\\n","stream":"stdout","time":"RFC3339Nano"}`, one record
per line, pieces of 16 KiB without a newline for longer ones.

There is no loop over lines: bytes.replace and bytes.translate do the work in C. All lines of one
read carry one timestamp, which is when they were read.
"""

from __future__ import annotations

import time

LIMIT = 16384

_SPECIAL = b'"\\<>&'
# needs no escape; newlines are kept until the end, where they become the seams between records
_PLAIN = bytes(c for c in range(0x20, 0x80) if c not in _SPECIAL) + b"\n"
_ESCAPES = [(b"\\", b"\\\\"), (b'"', b'\\"'), (b"\r", b"\\r")] + [
    (bytes((c,)), b"\\u%04x" % c) for c in (*b"<>&", *(c for c in range(0x20) if c not in b"\r\n"))
]
# what xmlcharrefreplace makes of the surrogates that stand for invalid bytes
_INVALID = [(b"&#%d;" % (0xDC00 + c), b"\\ufffd") for c in range(0x80, 0x100)]

_second = -1
_prefix = ""


def split(data: bytes, final: bool = False) -> tuple[list[bytes], bytes]:
    """Cut data, which begins at the start of a line, into what can be logged now.

    Returns (segments, rest): a segment is a run of whole lines, or a piece without a newline of a
    line longer than LIMIT (or of the last one, when `final`). The rest, shorter than LIMIT, is the
    beginning of a line that is not complete. Pieces do not cut a UTF-8 character in two.
    """
    size = len(data)
    segments: list[bytes] = []
    start = position = 0
    while size - position >= LIMIT:
        newline = data.rfind(b"\n", position, position + LIMIT)
        if newline >= 0:
            position = newline + 1
            continue
        if position > start:
            segments.append(data[start:position])
        cut = position + LIMIT
        if cut < size:
            back = cut
            while back > cut - 4 and data[back] & 0xC0 == 0x80:
                back -= 1
            if data[back] & 0xC0 == 0xC0:
                cut = back
        segments.append(data[position:cut])
        start = position = cut
    position = max(position, data.rfind(b"\n", position) + 1)
    if position > start:
        segments.append(data[start:position])
    rest = data[position:]
    if final and rest:
        segments.append(rest)
        rest = b""
    return segments, rest


def escape(data: bytes) -> bytes:
    """The inside of a JSON string as dockerd escapes it (invalid bytes as \\ufffd, one each), but
    with newlines left alone."""
    special = data.translate(None, _PLAIN)
    if not special:
        return data
    for char, replacement in _ESCAPES:
        if char in special:
            data = data.replace(char, replacement)
    if not special.isascii():
        try:
            str(data, "utf-8")
        except UnicodeDecodeError:
            data = str(data, "utf-8", "surrogateescape").encode("utf-8", "xmlcharrefreplace")
            for reference, replacement in _INVALID:
                if reference in data:
                    data = data.replace(reference, replacement)
        # valid JSON, but not valid JavaScript: Go escapes them
        data = data.replace(b"\xe2\x80\xa8", b"\\u2028").replace(b"\xe2\x80\xa9", b"\\u2029")
    return data


def timestamp(time_ns: int) -> str:
    """RFC 3339 with nanoseconds as Go's time.RFC3339Nano: UTC, no trailing zeros."""
    global _second, _prefix
    second, fraction = divmod(time_ns, 1_000_000_000)
    if second != _second:
        _second, _prefix = second, time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(second))
    return f"{_prefix}.{fraction:09d}".rstrip("0").rstrip(".") + "Z" if fraction else f"{_prefix}Z"


def json_lines(segments: list[bytes], stream: str, time_ns: int, attributes: str = "") -> list[bytes]:
    """The records of the segments, as the json-file driver stores them, in parts that are to be written one
    after the other; attributes: of each, as JSON."""
    more = f'"attrs":{attributes},' if attributes else ""
    tail = f'","stream":"{stream}",{more}"time":"{timestamp(time_ns)}"}}\n'.encode()
    head = b'{"log":"'
    seam = b"\\n" + tail + head
    parts: list[bytes] = []
    for segment in segments:
        text = escape(segment)
        if text.endswith(b"\n"):
            parts += (head, text[:-1].replace(b"\n", seam), b"\\n", tail)
        else:
            parts += (head, text, tail)
    return parts


def cri_lines(segments: list[bytes], stream: str, time_ns: int) -> list[bytes]:
    """The records of the segments as a kubelet reads them: time, stream, a tag, the line. The tag is F
    of a whole line, P of a piece that the next record of the stream goes on with (kubernetes,
    pkg/kubelet/kuberuntime/logs)."""
    start = f"{timestamp(time_ns)} {stream} ".encode()
    head, seam = start + b"F ", b"\n" + start + b"F "
    parts: list[bytes] = []
    for segment in segments:
        if segment.endswith(b"\n"):
            parts += (head, segment[:-1].replace(b"\n", seam), b"\n")
        else:
            parts += (start, b"P ", segment, b"\n")
    return parts


RECORDS = {"json-file": json_lines, "cri": cri_lines}
