"""What the user asked for over what the image says: docker run's rules."""

from __future__ import annotations

import pytest

from nagaya.engine.merge import argv, environment, merge
from nagaya.engine.model import ContainerConfig
from nagaya.errors import InvalidArgument
from nagaya.oci.imageconfig import ContainerDefaults

IMAGE = ContainerDefaults(
    user="app",
    env=["PATH=/bin", "A=image", "B=image"],
    entrypoint=["/entry"],
    cmd=["serve", "--all"],
    working_dir="/srv/",
    labels={"a": "image", "b": "image"},
    exposed_ports={"80/tcp": {}},
    volumes={"/data": {}},
    stop_signal="SIGQUIT",
)


@pytest.mark.parametrize(
    ("entrypoint", "command", "expected"),
    [
        (None, None, ("/entry", "serve", "--all")),
        (None, ("x",), ("/entry", "x")),
        (None, (), ("/entry", "serve", "--all")),
        (("/own",), None, ("/own",)),  # an own entrypoint drops the image's command
        (("/own",), ("x",), ("/own", "x")),
        ((), ("x",), ("x",)),
        (("",), ("x",), ("x",)),  # --entrypoint ""
    ],
)
def test_entrypoint_and_command(
    entrypoint: tuple[str, ...] | None, command: tuple[str, ...] | None, expected: tuple[str, ...]
) -> None:
    merged = merge(ContainerConfig("i", command=command, entrypoint=entrypoint), IMAGE)
    assert argv(merged) == expected


@pytest.mark.parametrize("entrypoint", [(), ("",)])
def test_nothing_to_run(entrypoint: tuple[str, ...]) -> None:
    with pytest.raises(InvalidArgument, match="no command specified"):
        merge(ContainerConfig("i", entrypoint=entrypoint), IMAGE)
    with pytest.raises(InvalidArgument, match="no command specified"):
        merge(ContainerConfig("i"), ContainerDefaults())


def test_a_lone_string_is_one_word() -> None:
    assert argv(merge(ContainerConfig("i"), ContainerDefaults(cmd="echo hi"))) == ("echo hi",)


def test_the_images_fields_fill_what_the_user_left_out() -> None:
    merged = merge(ContainerConfig("i", env=("A=user", "C=user"), labels={"a": "user"}), IMAGE)
    assert merged.user == "app"
    assert merged.working_dir == "/srv"
    assert merged.stop_signal == "SIGQUIT"
    assert merged.labels == {"a": "user", "b": "image"}
    assert merged.exposed_ports == ("80/tcp",)
    assert merged.image_volumes == ("/data",)
    assert merged.env == ("A=user", "C=user", "PATH=/bin", "B=image")


def test_the_users_fields_win() -> None:
    wanted = ContainerConfig(
        "i", user="0", working_dir="/w/../x", stop_signal="9", exposed_ports=("81/udp", "80/tcp")
    )
    merged = merge(wanted, IMAGE)
    assert (merged.user, merged.working_dir, merged.stop_signal) == ("0", "/x", "9")
    assert merged.exposed_ports == ("80/tcp", "81/udp")


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ContainerConfig("i", working_dir="relative"), "relative"),
        (ContainerConfig("i", env=("=x",)), "=x"),
        (ContainerConfig("i", env=("",)), "variable"),
        (ContainerConfig("i", env=("A=\0",)), "variable"),
    ],
)
def test_refused(config: ContainerConfig, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named):
        merge(config, IMAGE)


def test_environment() -> None:
    given = environment(
        ["A=1", "PATH=/x", "A=2", "GONE", "HOME=/h"], hostname="h", tty=True, home="/root", base=["GONE=1"]
    )
    assert given == ("PATH=/x", "HOSTNAME=h", "TERM=xterm", "A=2", "HOME=/h")
    assert environment(["E="], hostname="", tty=False, home="/root")[1:] == ("E=", "HOME=/root")
