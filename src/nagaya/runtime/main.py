"""Where the launcher of nagaya-oci comes in when there is no file of compiled modules, or an outdated one."""

from __future__ import annotations

from nagaya.runtime import codecache

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn


def main(argv: list[str]) -> NoReturn:
    """Run one command and exit with its code. argv is without the program's name."""
    codecache.run(codecache.Finder(__file__[: -len("/runtime/main.py")]), argv)
