"""nagaya-vm: the command line of nagaya-oci, for bundles that run in microVMs (docs/vm.md)."""

from __future__ import annotations

from nagaya.linux import os
from nagaya.runtime import command
from nagaya.runtime.arguments import FLAG, TEXT, Option

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import NoReturn

NAME = "nagaya-vm"
_NOT_OFFERED = ("checkpoint", "plan", "restore")
_OWN = "create delete events exec features kill ps run update".split()
VERBS = {
    name: text.replace("nagaya-oci", NAME) for name, text in command.VERBS.items() if name not in _NOT_OFFERED
}
OPTIONS = (
    Option("state", TEXT, "directory of disks and saved machines (default: /var/lib/nagaya-vm)"),
    Option("guest", TEXT, "directory of the guests' kernels (default: where `./dev vm` puts them)"),
    Option("no-snapshot", FLAG, "boot each machine, and clone none that has booted"),
)
KIND = command.Kind(NAME, VERBS, "nagaya.vm.verbs", frozenset(_OWN), enters=False, options=OPTIONS)


def main(argv: list[str], program: str = NAME) -> NoReturn:
    """Run one command and exit with its code. argv is without the program's name."""
    os._exit(command.main(argv, program.rpartition("/")[2], KIND))  # nothing is buffered
