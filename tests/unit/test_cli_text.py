"""What the command prints: templates, tables, ages, sizes, timelines."""

from __future__ import annotations

import json
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nagaya.cli import output, timeline, values
from nagaya.cli.flags import UsageError
from nagaya.cli.template import Template, TemplateError
from nagaya.cli.verbs.events import line
from nagaya.cli.verbs.ps import ports
from nagaya.cli.verbs.stats import cpu_percent

DATA: dict[str, Any] = {
    "Name": "/web",
    "State": {"Status": "running", "Running": True, "ExitCode": 0, "Health": None},
    "Config": {"Env": ["A=b", "C=d"], "Labels": {"b": "2", "a": "1"}, "Cmd": None, "Empty": []},
    "Ports": {"80/tcp": [{"HostIp": "0.0.0.0", "HostPort": "8080"}], "90/tcp": None},
    "Html": "<a&b>",
    "Ratio": 1.5,
}


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("plain", "plain"),
        ("{{.State.Status}} {{ .State.ExitCode }}", "running 0"),
        ("{{json .State}}", '{"Status":"running","Running":true,"ExitCode":0,"Health":null}'),
        ("{{.Config.Labels}} {{.Config.Env}} {{.Config.Cmd}}", "map[a:1 b:2] [A=b C=d] []"),
        ("{{range .Config.Env}}{{.}};{{end}}", "A=b;C=d;"),
        ("{{range $i, $e := .Config.Env}}{{$i}}={{$e}} {{end}}", "0=A=b 1=C=d "),
        (
            "{{range $p, $b := .Ports}}{{$p}}{{if $b}}->{{(index $b 0).HostPort}}{{end}} {{end}}",
            "80/tcp->8080 90/tcp ",
        ),
        ("{{range .Config.Empty}}x{{else}}none{{end}}", "none"),
        ('{{(index (index .Ports "80/tcp") 0).HostPort}}', "8080"),
        ('{{index .Config.Labels "a"}}{{index .Config.Labels "z"}}', "1<no value>"),
        ("{{if .State.Running}}up{{else}}down{{end}}", "up"),
        ('{{if eq .State.Status "exited"}}a{{else if eq .State.Status "running"}}b{{else}}c{{end}}', "b"),
        ("{{if and .State.Running (not .State.Health)}}x{{end}}", "x"),
        ("{{with .State.Health}}{{.Status}}{{else}}no check{{end}}", "no check"),
        ("{{with $s := .State}}{{$s.Status}}{{$.Name}}{{end}}", "running/web"),
        ('{{join .Config.Env ","}} {{len .Config.Env}}', "A=b,C=d 2"),
        ('{{.Name | upper | printf "%s!"}}', "/WEB!"),
        ('{{slice .Name 1}} {{truncate .Name 2}} {{split .Name "/" }}', "web /w [ web]"),
        ('{{printf "%q %d %v" .Name 3 .State.Running}}', '"/web" 3 true'),
        ("a {{- /* a comment */ -}} b {{- .Name -}} c", "ab/webc"),
        ("{{ .Html }}{{.Ratio}}{{println}}", "<a&b>1.5\n"),
        ('{{"quoted }} \\" brace"}}', 'quoted }} " brace'),
        ("{{$x := .Name}}{{$x}}", "/web"),
        ("{{range .Config.Env}}{{$.State.Status}} {{end}}", "running running "),
        ("{{true}}{{nil}}{{1}}{{-2}}", "true<nil>1-2"),
    ],
)
def test_templates_say_what_gos_say(source: str, text: str) -> None:
    assert Template(source).render(DATA) == text


@pytest.mark.parametrize(
    "source",
    [
        "{{.Nope}}", "{{.State.Nope}}", "{{.Name.Nope}}", "{{.State.Health.Status}}", "{{frob .Name}}", "{{",
        "{{if .Name}}", "{{range .Name}}{{end}}", "{{end}}", "{{else}}", '{{"open}}',
        "{{index .Config.Env 9}}", "{{.Name 1}}", "{{$nope}}", "{{}}", "{{.Name | }}", "{{len 3}}",
        "{{join}}",
    ],
)  # fmt: skip
def test_bad_templates_are_one_clear_line(source: str) -> None:
    with pytest.raises(TemplateError) as caught:
        Template(source).render(DATA)
    assert str(caught.value).startswith("template")
    assert "\n" not in str(caught.value)


@settings(max_examples=300, deadline=None)
@given(st.text(alphabet='{}.$|()"`-:= \nabNameindexrangeifend01', max_size=40))
def test_a_template_either_renders_or_is_refused(source: str) -> None:
    try:
        Template(source).render(DATA)
    except TemplateError:
        pass


def test_tables_are_aligned_as_gos_tabwriter_does() -> None:
    rows = [["CONTAINER ID", "A", "NAMES"], ["x", "longer than ten", "y"], ["only one"]]
    assert output.table(rows).splitlines() == [
        "CONTAINER ID   A                 NAMES",
        "x              longer than ten   y",
        "only one",
    ]
    assert output.table([]) == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.4, "Less than a second"), (1, "1 second"), (59, "59 seconds"), (60, "About a minute"),
        (119, "About a minute"), (120, "2 minutes"), (46 * 60, "46 minutes"), (3600, "About an hour"),
        (5399, "About an hour"), (5400, "2 hours"), (47 * 3600, "47 hours"), (48 * 3600, "2 days"),
        (13 * 86400, "13 days"),
        (14 * 86400, "2 weeks"), (59 * 86400, "8 weeks"), (60 * 86400, "2 months"),
        (729 * 86400, "24 months"), (730 * 86400, "2 years"),
    ],
)  # fmt: skip
def test_ages_are_dockers(seconds: float, text: str) -> None:
    assert output.human_duration(seconds) == text


def test_sizes_are_dockers() -> None:
    assert [output.human_size(n) for n in (0, 999, 1000, 4261550, 77_812_345, 1_050_000_000)] == [
        "0B", "999B", "1kB", "4.26MB", "77.8MB", "1.05GB",
    ]  # fmt: skip
    assert [output.human_bytes(n) for n in (0, 1023, 663552, 25_276_000_000)] == [
        "0B",
        "1023B",
        "648KiB",
        "23.54GiB",
    ]
    assert output.go_quote('sh -c "a\n\t\x01é"') == '"sh -c \\"a\\n\\t\\x01é\\""'
    assert output.ellipsis("0123456789", 5) == "0123…"


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("64m", 64 << 20),
        ("1.5g", 3 << 29),
        ("10", 10),
        ("2KiB", 2048),
        ("3kb", 3072),
        ("7b", 7),
        ("-1", -1),
        ("0", 0),
    ],
)
def test_sizes_of_flags(text: str, number: int) -> None:
    assert values.size(text) == number


def test_times_of_flags() -> None:
    assert values.duration("1h2m3.5s") == 3723500000000
    assert values.duration("-1.5h") == -5400 * 10**9
    assert values.moment("since", "12.5") == "12.5"
    assert values.moment("since", "2026-01-02T03:04:05.123456789Z") == "1767323045.123456789"
    assert values.moment("since", "2026-01-02T03:04:05.5+01:00") == "1767319445.500000000"
    assert float(values.moment("since", "2026-01-02T03:04:05Z".replace("Z", "+00:00"))) == 1767323045
    assert abs(float(values.moment("since", "10m")) - (time.time() - 600)) < 5
    for bad in ("", "1", "1x", "s", "-", "1..2s"):
        with pytest.raises(UsageError):
            values.duration(bad)


def test_ports_are_grouped_as_docker_does() -> None:
    def port(private: int, public: int = 0, ip: str = "", kind: str = "tcp") -> dict[str, Any]:
        return {"PrivatePort": private, "Type": kind, **({"PublicPort": public, "IP": ip} if public else {})}

    assert ports([]) == ""
    assert ports([port(80, 8080, "0.0.0.0"), port(80, 8080, "::"), port(53, kind="udp")]) == (
        "53/udp, 0.0.0.0:8080->80/tcp, [::]:8080->80/tcp"
    )
    assert ports([port(91, 91, "0.0.0.0"), port(90, 90, "0.0.0.0"), port(94), port(93), port(99)]) == (
        "93-94/tcp, 0.0.0.0:90-91->90-91/tcp, 99/tcp"
    )


def test_events_are_one_line_each(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TZ", "Asia/Kolkata")
    time.tzset()
    try:
        event = {
            "Type": "container", "Action": "start", "time": 0, "timeNano": 1_700_000_000_123_456_789,
            "Actor": {"ID": "abc", "Attributes": {"name": "x", "image": "y"}},
        }  # fmt: skip
        assert line(event) == "2023-11-15T03:43:20.123456789+05:30 container start abc (image=y, name=x)"
    finally:
        monkeypatch.undo()
        time.tzset()


def test_cpu_share_needs_two_readings() -> None:
    one = {"cpu_usage": {"total_usage": 50}, "system_cpu_usage": 1000, "online_cpus": 2}
    two = {"cpu_usage": {"total_usage": 150}, "system_cpu_usage": 1400, "online_cpus": 2}
    assert cpu_percent({"cpu_stats": two, "precpu_stats": one}) == 50.0
    assert cpu_percent({"cpu_stats": two}) > 0
    assert cpu_percent({}) == 0.0


STEPS = [
    {"Room": "engine", "Name": "create", "Detail": "row", "StartNs": 1_000_000, "DurationNs": 1_000_000},
    {
        "Room": "builder",
        "Name": "clone3",
        "Detail": "6 namespaces",
        "StartNs": 3_000_000,
        "DurationNs": 2_000_000,
    },
    {"Room": "init", "Name": "mount", "Detail": "/proc \x1b[2J", "StartNs": 5_000_000, "DurationNs": 100},
]


@pytest.mark.parametrize("width", [20, 80, 200])
def test_a_timeline_shows_every_step_on_one_axis(width: int) -> None:
    lines = timeline.draw(STEPS, width, color=False).splitlines()
    axis, *bars, total = lines
    assert axis.endswith("4.00 ms")
    assert [bar.split()[:2] for bar in bars] == [
        ["engine", "create"],
        ["builder", "clone3"],
        ["init", "mount"],
    ]
    zero = axis.index("0")
    assert bars[0].index("█") == zero
    assert bars[1].index("█") > bars[0].rindex("█") + 1  # nothing was done in between
    assert bars[2][zero:].strip(" ?[2J/proc…")  # the shortest step is seen
    assert total.startswith("4.00 ms") and "3.00 ms" in total
    assert "\x1b" not in "".join(lines)


def test_a_timeline_has_a_colour_for_each_room() -> None:
    drawn = timeline.draw(STEPS, 100, color=True)
    assert len({piece.split("m")[0] for piece in drawn.split("\x1b[")[1:]} - {"0"}) == 3


def test_no_steps_are_said_to_be_none() -> None:
    assert timeline.draw([], 80, color=True).startswith("no steps are known")


def test_rows_go_by_format(capsys: pytest.CaptureFixture[str]) -> None:
    items = [{"ID": "1", "Names": "<a>", "Label": lambda name: name * 2}]
    columns = (("ID", "CONTAINER ID"),)
    output.rows(items, columns, "")
    output.rows(items, columns, "json")
    output.rows(items, columns, 'table {{.ID}}\\t{{.Names}}\\t{{.Label "x"}}', {"Names": "NAMES"})
    output.rows(items, columns, "{{.Names}}")
    first, second, third, fourth, *rest = capsys.readouterr().out.splitlines()
    assert (first, second) == ("CONTAINER ID", "1")
    assert json.loads(third) == {"ID": "1", "Names": "<a>"} and "<" not in third
    assert fourth.split() == ["CONTAINER", "ID", "NAMES", "x"]
    assert rest == ["1              <a>       xx", "<a>"]
