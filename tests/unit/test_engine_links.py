"""What a link tells in variables: those that dockerd 20.10 told for the same containers."""

from __future__ import annotations

from nagaya.engine import links


def told(*exposed: str, variables: tuple[str, ...] = ()) -> list[str]:
    return list(links.environment("web", "my-db", "10.0.0.2", exposed, variables))


def test_ports_name_and_environment() -> None:
    assert told("5432/tcp", "53/udp", variables=("SECRET=x", "B=2=3", "PATH=/bin", "HOME=/", "BARE")) == [
        "MY_DB_PORT=udp://10.0.0.2:53",
        "MY_DB_PORT_53_UDP=udp://10.0.0.2:53",
        "MY_DB_PORT_53_UDP_ADDR=10.0.0.2",
        "MY_DB_PORT_53_UDP_PORT=53",
        "MY_DB_PORT_53_UDP_PROTO=udp",
        "MY_DB_PORT_5432_TCP=tcp://10.0.0.2:5432",
        "MY_DB_PORT_5432_TCP_ADDR=10.0.0.2",
        "MY_DB_PORT_5432_TCP_PORT=5432",
        "MY_DB_PORT_5432_TCP_PROTO=tcp",
        "MY_DB_NAME=/web/my-db",
        "MY_DB_ENV_SECRET=x",
        "MY_DB_ENV_B=2=3",
    ]


def test_without_ports() -> None:
    assert told() == ["MY_DB_NAME=/web/my-db"]


def test_three_in_a_row_are_a_range_too() -> None:
    assert told("82", "80/tcp", "81/tcp", "90/tcp")[1:8] == [
        "MY_DB_PORT_80_TCP_START=tcp://10.0.0.2:80",
        "MY_DB_PORT_80_TCP_ADDR=10.0.0.2",
        "MY_DB_PORT_80_TCP_PROTO=tcp",
        "MY_DB_PORT_80_TCP_PORT_START=80",
        "MY_DB_PORT_80_TCP_END=tcp://10.0.0.2:82",
        "MY_DB_PORT_80_TCP_PORT_END=82",
        "MY_DB_PORT_80_TCP=tcp://10.0.0.2:80",
    ]
    assert "MY_DB_PORT_90_TCP=tcp://10.0.0.2:90" in told("82", "80/tcp", "81/tcp", "90/tcp")
    assert told("80/tcp", "81/tcp")[1] == "MY_DB_PORT_80_TCP=tcp://10.0.0.2:80"
    both = told("100", "101", "100/udp", "101/udp")
    assert both[5:7] == ["MY_DB_PORT_100_UDP_END=udp://10.0.0.2:101", "MY_DB_PORT_100_UDP_PORT_END=101"]
