"""Where the launcher of nagaya-oci comes in: `command` is the command, `codecache` gets it loaded fast."""

from __future__ import annotations

import posix
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main(argv: list[str]) -> NoReturn:
    """Run one command and exit with its code. argv is without the program's name."""
    import gc

    # a process this short has nothing worth collecting
    gc.disable()
    from nagaya.runtime.codecache import Finder

    finder = Finder(__file__[: -len("/runtime/main.py")])
    sys.meta_path.insert(0, finder)
    from nagaya.runtime.command import main as command

    # named runc, it is to be taken for it: dockerd and podman read the name in --version
    code = command(argv, sys.argv[0].rpartition("/")[2])
    if finder.stale:
        finder.renew()
    # nothing is buffered; taking the interpreter down would cost 2 ms
    posix._exit(code)
