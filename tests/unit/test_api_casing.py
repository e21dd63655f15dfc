"""Members' names in any case."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nagaya.api.docker.types.structs import CreateBody, ExecCreateBody, ExecStartBody, decode_body
from nagaya.errors import InvalidArgument


def test_a_clients_lower_case() -> None:
    body = decode_body(b'{"detachKeys": "ctrl-p", "CMD": ["cat"], "tty": true}', ExecCreateBody)
    assert (body.DetachKeys, body.Cmd, body.Tty) == ("ctrl-p", ["cat"], True)


def test_below_and_in_lists_and_maps_too() -> None:
    text = json.dumps(
        {
            "image": "x",
            "hostconfig": {
                "portbindings": {"80/tcp": [{"hostport": "8080"}]},
                "MOUNTS": [{"type": "bind", "source": "/a", "target": "/b"}],
            },
            "labels": {"image": "stays", "Image": "as it is"},
        }
    )
    body = decode_body(text.encode(), CreateBody)
    assert body.Image == "x" and body.Labels == {"image": "stays", "Image": "as it is"}
    host = body.HostConfig
    assert host is not None and host.PortBindings is not None and host.Mounts is not None
    bindings = host.PortBindings["80/tcp"]
    assert bindings is not None and bindings[0].HostPort == "8080"
    assert (host.Mounts[0].Type, host.Mounts[0].Source, host.Mounts[0].Target) == ("bind", "/a", "/b")


def test_the_exact_name_wins() -> None:
    for text in (b'{"tty": false, "Tty": true}', b'{"Tty": true, "TTY": false}'):
        assert decode_body(text, ExecStartBody).Tty is True


def test_wrong_types_are_named_as_they_are_known() -> None:
    with pytest.raises(InvalidArgument, match="Tty"):
        decode_body(b'{"tty": "yes"}', ExecStartBody)


JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | st.integers(-5, 5) | st.text(max_size=5),
    lambda below: (
        st.lists(below, max_size=3)
        | st.dictionaries(st.sampled_from(["image", "HOSTCONFIG", "Mounts", "env", "x"]), below, max_size=3)
    ),
    max_leaves=10,
)


@given(JSON)
def test_any_document_is_a_body_or_a_complaint(document: Any) -> None:
    try:
        decode_body(json.dumps(document).encode(), CreateBody)
    except InvalidArgument:
        pass
