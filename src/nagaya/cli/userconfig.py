"""docker's config.json, which is the user's (`DOCKER_CONFIG`, else ~/.docker)."""

from __future__ import annotations

import os

from nagaya.errors import InvalidArgument
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given


def path() -> str:
    """Where it is."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    return os.path.join(directory, "config.json")


def load() -> dict[str, Any]:
    """The document, {} when there is none. Raises InvalidArgument when it cannot be read."""
    name = path()
    try:
        with open(name, encoding="utf-8") as file:
            config = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, InvalidArgument) as error:
        raise InvalidArgument(f"cannot read {name}: {error}") from None
    return config if isinstance(config, dict) else {}


def save(config: dict[str, Any]) -> None:
    """The whole document anew, readable by its owner alone. Raises InvalidArgument."""
    from json import dumps  # its layout is what people know of this file

    name = os.path.realpath(path())
    part = f"{name}.{os.getpid()}.part"
    try:
        os.makedirs(os.path.dirname(name), mode=0o700, exist_ok=True)
        fd = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, dumps(config, indent="\t").encode())
        finally:
            os.close(fd)
        os.rename(part, name)
    except OSError as error:
        raise InvalidArgument(f"cannot write {name}: {error.strerror}") from None


def detach_keys(given: Given) -> str:
    """The keys that detach: the flag's, else the configuration's; "" for the default."""
    return str(given["detach-keys"] or load().get("detachKeys") or "")
