"""Dockerfile instructions of commit and import."""

from __future__ import annotations

from typing import Any

import pytest
from changes_table import CHANGES, REFUSED

from nagaya.build import changes
from nagaya.engine.making import filled
from nagaya.errors import InvalidArgument

BASE: dict[str, Any] = {"Env": ["A=1"], "Labels": {"own": "1"}, "Entrypoint": ["e"], "Cmd": ["a", "b"]}


@pytest.mark.parametrize(("change", "expected"), CHANGES)
def test_what_a_change_does(change: str, expected: dict[str, Any]) -> None:
    found = filled(changes.apply(BASE, [change]), BASE)
    for key, value in expected.items():
        if key == "Env":
            assert set(value) <= set(found["Env"])
        else:
            assert found.get(key) == value
    assert BASE["Env"] == ["A=1"]  # nothing is changed in place


@pytest.mark.parametrize(
    ("change", "why"),
    [
        *REFUSED,
        ("", "file with no instructions"),
        ("# only this", "file with no instructions"),
        ("ENV a='b", "unexpected end of statement"),
        ("ENV a=${b", "missing '}'"),
        ("ENV a=${A^x}", "unsupported modifier"),
        ("ENV a=b c", "can't find ="),
        ("HEALTHCHECK x", "Unknown type"),
        ("HEALTHCHECK --interval=x CMD y", "invalid duration"),
        ("HEALTHCHECK --what=1 CMD y", "unknown flag: --what"),
        ("EXPOSE 70000", "Invalid containerPort"),
        ("EXPOSE 9-8", "Invalid containerPort"),
        ('VOLUME [""]', "can not be an empty string"),
    ],
)
def test_what_is_refused(change: str, why: str) -> None:
    with pytest.raises(InvalidArgument, match=why):
        changes.apply(BASE, [change])


def test_several_in_order_and_in_lines() -> None:
    found = changes.apply(BASE, ["ENV B=$A\nENV C=$B \\\n D=2", 'CMD ["x"]', "ENTRYPOINT y"])
    assert found["Env"] == ["A=1", "B=1", "C=1", "D=2"] and found["Cmd"] == ["x"]


def test_what_a_container_has_fills_what_a_request_leaves_out() -> None:
    given = {"Cmd": ["x"], "Env": ["A=2"], "Labels": {"n": "1"}}
    found = filled(given, {**BASE, "User": "u", "Volumes": {"/v": {}}})
    assert found == {
        "Cmd": ["x"],
        "Entrypoint": ["e"],
        "Env": ["A=2"],
        "Labels": {"own": "1", "n": "1"},
        "User": "u",
        "Volumes": {"/v": {}},
    }
    assert filled({"Entrypoint": ["y"]}, BASE)["Entrypoint"] == ["y"]
    assert "Cmd" not in filled({"Entrypoint": ["y"]}, BASE)
