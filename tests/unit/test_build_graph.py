"""Which stages a build needs, and which arguments its instructions see."""

from __future__ import annotations

import pytest

from nagaya.build.arguments import Arguments, StageArguments, platform_values
from nagaya.build.graph import Graph, Source, plan
from nagaya.build.language.ast import DockerfileError, Label, Pair
from nagaya.build.language.parse import parse
from nagaya.oci.platform import Platform

HERE, THERE = Platform("linux", "amd64"), Platform("linux", "arm64", "v8")


def graph(
    text: str,
    target: str = "",
    given: dict[str, str | None] | None = None,
    labels: dict[str, str] | None = None,
) -> Graph:
    arguments = Arguments(given or {}, platform_values(THERE, HERE))
    return plan(parse(text.encode()), arguments, target, labels)


def complaint(text: str, target: str = "") -> tuple[str, int]:
    with pytest.raises(DockerfileError) as caught:
        graph(text, target)
    return caught.value.message, caught.value.line


def test_only_what_the_target_needs() -> None:
    text = """
FROM a AS one
FROM b AS two
RUN x
FROM one AS three
COPY --from=two x /
FROM scratch AS unused
COPY --from=two x /
FROM three
RUN --mount=from=0,target=/x y
"""
    assert [n.index for n in graph(text).nodes] == [0, 1, 2, 4]
    assert [n.needs for n in graph(text).nodes] == [set(), set(), {0, 1}, {2, 0}]
    assert [(n.index, n.first) for n in graph(text, "unused").nodes] == [(1, 1), (3, 3)]
    assert graph(text, "UNUSED").steps == 4
    assert graph(text, "1").target.name == "two"
    assert graph(text).nodes[0].base == Source(None, "a")
    assert graph(text).nodes[2].base == Source(0)
    assert graph(text).origin("Two") == Source(1)
    assert graph(text).origin("busybox") == Source(None, "busybox")


def test_a_base_sees_only_stages_before_it_and_the_last_of_a_name() -> None:
    found = graph("FROM base AS base\nFROM base AS base\nFROM base\n")
    assert [n.base for n in found.nodes] == [Source(None, "base"), Source(0), Source(1)]
    # COPY sees the later ones too: moby/buildkit runs those first
    later = graph("FROM a\nCOPY --from=b x /\nFROM c AS b\nFROM scratch\nCOPY --from=0 x /\n")
    assert [n.index for n in later.nodes] == [1, 0, 2]


def test_global_arguments_are_for_from() -> None:
    text = """
ARG v=1
ARG image=a:$v
ARG none
FROM --platform=$BUILDPLATFORM $image
FROM ${none:-$TARGETARCH}
COPY --from=0 / /
"""
    assert [n.base for n in graph(text).nodes] == [Source(None, "a:1", HERE), Source(None, "arm64")]
    assert graph(text, given={"v": "2", "none": "b"}).nodes[1].base == Source(None, "b")
    assert graph(text, given={"v": "2"}).nodes[0].base.image == "a:2"
    assert graph(text).steps == 3 + 1 + 2


def test_labels_of_the_command_line_are_the_target_s() -> None:
    found = graph("FROM a AS one\nFROM one\n", labels={"b": "$x", "a": "1"})
    assert found.nodes[0].instructions == ()
    assert [(i.text, i.pairs, i.literal) for i in found.target.instructions if isinstance(i, Label)] == [
        ("LABEL a=1", (Pair("a", "1"),), True),
        ("LABEL b=$x", (Pair("b", "$x"),), True),
    ]


@pytest.mark.parametrize(
    ("text", "target", "message", "line"),
    [
        ("FROM a", "x", 'target stage "x" could not be found', 0),
        ("FROM a\nFROM $x", "", "base name ($x) should not be blank", 2),
        ("FROM a\nCOPY --from=0 x /", "", "invalid from flag value 0: refers to current build stage", 2),
        ("FROM a\nCOPY --from=7 x /", "", "invalid from flag value 7: index out of bounds", 2),
        ("FROM a AS a\nCOPY --from=b x /\nFROM b AS b\nCOPY --from=a x /", "",
         "circular dependency detected on stage: a", 1),
        ("FROM --platform=a/b/c/d x", "",
         '"a/b/c/d" is an invalid platform: want os[/architecture[/variant]]', 1),
    ],
)  # fmt: skip
def test_what_cannot_be(text: str, target: str, message: str, line: int) -> None:
    assert complaint(text, target) == (message, line)


def test_thousands_of_stages_are_no_recursion() -> None:
    text = "FROM a AS s0\n" + "".join(f"FROM s{n} AS s{n + 1}\n" for n in range(3000))
    assert len(graph(text).nodes) == 3001


# arguments


def stage(given: dict[str, str | None], *declared: Pair, outer: str = "") -> StageArguments:
    arguments = Arguments(given, platform_values(THERE, HERE))
    for arg in parse(f"{outer}\nFROM a".encode()).args:
        arguments.declare(arg)
    found = StageArguments(arguments)
    found.declare(declared)
    return found


def test_an_argument_is_seen_once_it_is_declared() -> None:
    assert stage({"a": "1"}).visible([]) == {}
    assert stage({"a": "1"}, Pair("a", None)).visible([]) == {"a": "1"}
    assert stage({}, Pair("a", "d")).visible([]) == {"a": "d"}
    assert stage({"a": "1"}, Pair("a", "d")).visible([]) == {"a": "1"}
    assert stage({"a": None}, Pair("a", "d")).visible([]) == {"a": "d"}


def test_a_global_one_needs_to_be_declared_again_without_a_value() -> None:
    assert stage({}, outer="ARG g=1").visible([]) == {}
    assert stage({}, Pair("g", None), outer="ARG g=1").visible([]) == {"g": "1"}
    assert stage({}, Pair("g", "2"), outer="ARG g=1").visible([]) == {"g": "2"}
    assert stage({}, Pair("TARGETPLATFORM", None)).visible([]) == {"TARGETPLATFORM": "linux/arm64/v8"}


def test_env_hides_an_argument() -> None:
    found = stage({"a": "1"}, Pair("a", None), Pair("b", "2"))
    assert found.visible(["a=env", "c=3"]) == {"a": "env", "b": "2", "c": "3"}
    assert found.for_run(["a=env"]) == ["b=2"]


def test_a_stage_inherits_those_of_the_stage_it_begins_with() -> None:
    first = stage({}, Pair("a", "1"))
    second = StageArguments(first.build, first)
    second.declare([Pair("b", "2")])
    assert second.for_run([]) == ["a=1", "b=2"]
    assert first.for_run([]) == ["a=1"]


def test_a_proxy_leaves_no_trace_unless_it_is_declared() -> None:
    found = stage({"HTTP_PROXY": "p", "x": "1"})
    assert (found.for_run([]), found.recorded([])) == (["HTTP_PROXY=p"], [])
    found.declare([Pair("HTTP_PROXY", None)])
    assert found.recorded([]) == ["HTTP_PROXY=p"]


def test_the_unused_are_told() -> None:
    found = stage({"a": "1", "b": "2", "no_proxy": "x", "c": None, "g": "1"}, Pair("a", None), outer="ARG g")
    assert found.build.unused() == ["b", "c"]
