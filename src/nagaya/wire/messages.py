"""What daemon, keeper and io say to one another: one table per direction, one check for all.

A message is a flat JSON object with "kind". Descriptors travel beside it (SCM_RIGHTS); where a
message carries several kinds of them, its field "fds" names them in order. This module is data and
checks only: who sends, encodes the dict; who receives, decodes it and calls `check`.

Compatibility: a receiver ignores fields it does not know and fills in missing ones from the table;
a kind it does not know is an error. VERSION changes when that is not enough; `hello` carries it.
"""

from __future__ import annotations

from nagaya.errors import InvalidArgument, Unimplemented

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    Message = dict[str, Any]
    Table = dict[str, dict[str, tuple[tuple[type, ...], Any]]]

VERSION = 1

STDIO = ("pipes", "pty", "none")


class _Required:
    """Marks a field that has no default."""


REQUIRED = _Required()

_STR = ((str,), REQUIRED)
_INT = ((int,), REQUIRED)
_BOOL = ((bool,), False)
_TEXT = ((str,), "")
_LIST = ((list,), ())
_MAYBE_INT = ((int, type(None)), None)
_MAYBE_DICT = ((dict, type(None)), None)
_ENTRY = {
    "token": _STR,
    "pid": _INT,  # 0: a foreign runtime's container whose init is not known yet
    "stdio": _STR,
    "slots": _LIST,  # places in the intent memfd, one per output stream
    "log": _MAYBE_DICT,  # {"driver", "path", "max_size", "max_file"}
    "fds": _LIST,  # of "pidfd" "stdin" "stdout" "stderr" "tty"
    "exited": _BOOL,
    "status": _MAYBE_INT,  # wait status; None with exited: nobody saw it
    "time_ns": ((int,), 0),
}

TO_KEEPER: Table = {
    # first message of a daemon; the keeper answers hello, then `entries` + `held` messages
    "hello": {"version": _INT},
    # to a keeper without entries, after its predecessor died: [intent memfd, stage read, stage write],
    # then `entries` adopt messages; only then is output read again
    "restore": {"entries": _INT},
    "adopt": _ENTRY,
    # [request memfd, reply socket]; token "": a call without a process; shared: a builder that has done
    # other such jobs may do it, as it joins no pid namespace that containers are in
    "spawn": {
        "serial": _INT,
        "token": _TEXT,
        "stdio": ((str,), "none"),
        "stdin": _BOOL,
        "log": _MAYBE_DICT,
        "shared": _BOOL,
    },
    # [pidfd]: the init of a foreign runtime's container
    "watch": {"token": _STR, "pid": _INT},
    "release": {"token": _STR},
    # [client socket] or [client socket, memfd with the first `preface` bytes of stdin]
    "attach": {
        "serial": _INT,
        "token": _STR,
        "stdin": _BOOL,
        "stdout": _BOOL,
        "stderr": _BOOL,
        "mux": _BOOL,
        "stdin_once": _BOOL,
        "detach_keys": _TEXT,  # "": ctrl-p,ctrl-q on a terminal, none without
        "preface": ((int,), 0),
    },
    "resize": {"token": _STR, "h": _INT, "w": _INT},
    "close_stdin": {"token": _STR},
    "hold": {"token": _STR},  # [any descriptors]
    "unhold": {"token": _STR},
    "quit": {},
}

TO_DAEMON: Table = {
    "hello": {
        "version": _INT,
        "pid": _INT,
        "born": ((int,), 0),  # another number: another keeper, perhaps in the same process
        "entries": _INT,
        "held": _INT,
    },  # [memfd, stage read, stage write]
    "entry": _ENTRY,  # one per entry after hello, with duplicates of its descriptors
    "held": {"token": _STR},  # one per held token after hello, with its descriptors
    "started": _ENTRY,
    "failed": {"token": _STR},  # the builder ended and there is no process: the token is free again
    "exit": {"token": _STR, "status": _MAYBE_INT, "time_ns": _INT},
    "refused": {"serial": _INT, "error": ((dict,), REQUIRED)},
    "attached": {"serial": _INT, "error": _MAYBE_DICT},
    "detached": {"serial": _INT, "token": _STR, "reason": _STR},  # "keys" "gone" "slow" "end"
    "stdin_closed": {"token": _STR},  # close your duplicate, or the container sees no end of file
    "dropped": {"token": _STR, "lines": _INT, "errno": _INT},  # log lines that could not be written
    "io_restarted": {"count": _INT, "serials": _LIST},  # serials: attachments that ended with the old io
    "note": {"text": _STR},
}

TO_IO: Table = {
    "open": _ENTRY,
    "drop": {"token": _STR},
    "attach": TO_KEEPER["attach"],
    "drain": {"token": _STR},  # the process has ended: say `drained` when its output is on disk
    "close_stdin": {"token": _STR},
}

FROM_IO: Table = {
    "drained": {"token": _STR},
    "stdin_closed": TO_DAEMON["stdin_closed"],
    "attached": TO_DAEMON["attached"],
    "detached": TO_DAEMON["detached"],
    "dropped": TO_DAEMON["dropped"],
}

# a builder to its keeper, over their private socket pair: [pidfd] or [pidfd, pty master]
FROM_BUILDER: Table = {"launched": {"pid": _INT}}


def message(table: Table, kind: str, /, **fields: Any) -> Message:
    """A message ready to be encoded: checked, with "kind". Raises as `check`."""
    fields["kind"] = kind
    return check(table, fields)


def check(table: Table, data: Any) -> Message:
    """The message as its table wants it: defaults filled in, unknown fields left out.

    Raises InvalidArgument that names the field; Unimplemented for an unknown kind.
    """
    if not isinstance(data, dict):
        raise InvalidArgument("a message must be an object")
    kind = data.get("kind")
    shape = table.get(kind) if isinstance(kind, str) else None
    if shape is None:
        raise Unimplemented(f"unknown message {kind!r}", subject="kind")
    result: Message = {"kind": kind}
    for name, (types, default) in shape.items():
        value = data.get(name, default)
        if value is REQUIRED:
            raise InvalidArgument(f"{kind} lacks {name}", subject=name)
        # bool is an int to isinstance, but not to the other side
        if value is not default and type(value) not in types:
            raise InvalidArgument(f"{kind}.{name} has the wrong type {type(value).__name__}", subject=name)
        result[name] = value
    return result
