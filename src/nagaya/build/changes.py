"""Changes to an image's configuration in the words of a Dockerfile (`docker commit --change`, `import`).

Pure. The instructions are those that moby allows there (builder/dockerfile, validCommitCommands); each sees
the variables that the configuration has so far.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nagaya.build import settings
from nagaya.build.arguments import environment
from nagaya.build.language import lines, parse
from nagaya.build.language.ast import Cmd, DockerfileError
from nagaya.build.language.expand import expand

_ALLOWED = frozenset(
    "cmd entrypoint env expose healthcheck label onbuild stopsignal user volume workdir".split()
)


def apply(config: Mapping[str, Any], changes: Sequence[str]) -> settings.Config:
    """The configuration (image-spec's `config`) after these instructions. Raises InvalidArgument."""
    found = dict(config)
    if not changes:
        return found
    read = lines.read("\n".join(changes).encode())
    commanded = False
    for line in read.lines:
        keyword = line.keyword.lower()
        if keyword not in _ALLOWED:
            raise DockerfileError(f"{keyword[:40]} is not a valid change command", line.line)
        instruction = expand(
            parse.instruction(line, read.escape), environment(found.get("Env") or ()), read.escape
        )
        found = settings.apply(found, instruction, commanded)
        commanded = commanded or isinstance(instruction, Cmd)
    return found
