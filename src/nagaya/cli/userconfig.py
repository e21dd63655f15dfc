"""docker's config.json, which is the user's (`DOCKER_CONFIG`, else ~/.docker)."""

from __future__ import annotations

import os

from nagaya.errors import InvalidArgument
from nagaya.linux import json

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from nagaya.cli.flags import Given


def load() -> dict[str, Any]:
    """The document, {} when there is none. Raises InvalidArgument when it cannot be read."""
    directory = os.environ.get("DOCKER_CONFIG") or os.path.join(os.path.expanduser("~"), ".docker")
    path = os.path.join(directory, "config.json")
    try:
        with open(path, encoding="utf-8") as file:
            config = json.loads(file.read())
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, UnicodeDecodeError, InvalidArgument) as error:
        raise InvalidArgument(f"cannot read {path}: {error}") from None
    return config if isinstance(config, dict) else {}


def detach_keys(given: Given) -> str:
    """The keys that detach: the flag's, else the configuration's; "" for the default."""
    return str(given["detach-keys"] or load().get("detachKeys") or "")
