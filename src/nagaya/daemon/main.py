"""The command `nagayad`."""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import time
from collections.abc import Sequence

from nagaya.errors import InvalidArgument, NagayaError


class _OneLine(logging.Formatter):
    """`2026-01-02T03:04:05.678Z level message`, whatever the message contains; a traceback is appended
    to the same line, escaped, so that a log stays a list of lines."""

    def format(self, record: logging.LogRecord) -> str:
        stamp = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        text = record.getMessage()
        if record.exc_info:
            text = f"{text}: {self.formatException(record.exc_info)}"
        text = text.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
        return f"{stamp}.{int(record.msecs):03d}Z {record.levelname.lower()} {text}"


def _start_logging(level: str) -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine())
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("urllib3").setLevel("ERROR")  # retries are ours to report
    logging.getLogger("asyncio").setLevel("WARNING")


def main(argv: Sequence[str]) -> int:
    """Run the daemon. Returns 0 after SIGTERM; 1 for an error, a wrong configuration included, told in
    one line on stderr."""
    from nagaya.daemon import config as configuration

    try:
        config, validate = configuration.load(argv)
    except InvalidArgument as error:
        sys.stderr.write(f"nagayad: {error}\n")
        return 1
    if validate:
        sys.stderr.write("configuration OK\n")  # dockerd's words, and where it writes them
        return 0
    if os.geteuid() != 0:
        sys.stderr.write("nagayad: needs root (namespaces, mounts and cgroups)\n")
        return 1
    os.umask(0o022)
    _start_logging(config.log_level)
    from nagaya.daemon.compose import serve

    try:
        asyncio.run(serve(config))
    except NagayaError as error:
        sys.stderr.write(f"nagayad: {error}\n")
        return 1
    except KeyboardInterrupt:
        return 130
    return 0
