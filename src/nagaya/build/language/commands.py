"""What RUN, CMD and ENTRYPOINT really run: the shell's words, and documents handed to it."""

from __future__ import annotations

import re
from collections.abc import Sequence

import msgspec

from nagaya.build.language import lines
from nagaya.build.language.ast import CommandLine

SHELL = ("/bin/sh", "-c")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,100}", re.ASCII)  # a document's mark may hold slashes
SCRIPTS = "/dev/pipes"  # where moby/buildkit puts a document that is a script of its own


class Program(msgspec.Struct, frozen=True):
    """words: the whole command line. script: the content of an executable file that must be at `path`, which
    is then the command; "" when there is none."""

    words: tuple[str, ...]
    path: str = ""
    script: str = ""


def program(command: CommandLine, shell: Sequence[str] | None = None) -> Program:
    """What RUN runs. shell: the stage's, None for /bin/sh.

    A document alone (`RUN <<EOF`) is the shell's line, or a program when it begins with `#!`; beside other
    words it is the shell's own business.
    """
    if not command.shell:
        return Program(command.words)
    line = " ".join(command.words)
    if command.heredocs:
        first = command.heredocs[0]
        if len(command.heredocs) == 1 and lines.mark(line) is not None:
            if first.text.startswith("#!"):
                path = f"{SCRIPTS}/{first.name if _NAME.fullmatch(first.name) else 'script'}"
                return Program((*(shell or SHELL), path), path, first.text)
            line = first.text
        else:
            line += "".join(f"\n{heredoc.content}{heredoc.name}" for heredoc in command.heredocs)
    return Program((*(shell or SHELL), line))


def words(command: CommandLine, shell: Sequence[str] | None = None) -> list[str]:
    """What CMD and ENTRYPOINT put into the configuration."""
    return [*((shell or SHELL) if command.shell else ()), *command.words]
