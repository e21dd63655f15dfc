"""The network of a sandbox, handed over to a guest and given back, in network namespaces of the tests."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root

SOURCE = Path(__file__).resolve().parents[2] / "src"
# a sandbox as the daemon wires it: eth0 with both kinds of address, a way out, a route of somebody's
_SANDBOX = """
set -e
ip link set lo up
ip link add outer address 02:42:0a:e7:07:01 type veth peer name eth0 address 02:42:0a:e7:07:02
ip link set eth0 mtu 1400 up
ip link set outer netns $OUTSIDE
ip address add 10.231.7.2/24 dev eth0
ip address add fd00:231::2/64 dev eth0 nodad
ip route add default via 10.231.7.1
ip route add 10.231.8.0/24 dev eth0 src 10.231.7.2
ip route add 10.231.9.0/24 via 10.231.7.3
"""


def inside(code: str) -> str:
    """Python in a network namespace of its own, beside another one; what it prints."""
    head = "import os, subprocess\nfrom nagaya.linux import netlink as nl\nfrom nagaya.vm import network\n"
    script = head + code
    outside = """
unshare --net sleep 60 & OUTSIDE=$!; export OUTSIDE; trap 'kill $OUTSIDE' EXIT
until [ "$(readlink /proc/$OUTSIDE/ns/net)" != "$(readlink /proc/$$/ns/net)" ]; do :; done
"""
    python = '"$PYTHON" -c "$CODE"'
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", f"{outside}{_SANDBOX}{python}"],
        env={**os.environ, "PYTHON": sys.executable, "CODE": script, "PYTHONPATH": str(SOURCE)},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


_SHOW = """
def show():
    for words in (["address", "show", "dev", "eth0"], ["route"], ["-6", "route"]):
        print(subprocess.run(["ip", *words], capture_output=True, text=True, check=True).stdout)
"""


def test_what_is_given_back_is_what_was_there() -> None:
    code = """
show()
print("=====")
with nl.Netlink() as route:
    found = network.cards(route)
network.hand_over(found)
with nl.Netlink() as route:
    assert network.cards(route)[0].addresses == []
again = [network.from_wire(card.to_wire()) for card in found]
for card in found:
    os.close(card.tap)
network.give_back(again)
with nl.Netlink() as route:
    assert sorted(link.name for link in route.links()) == ["eth0", "lo"], [l.name for l in route.links()]
show()
"""
    before, after = inside(_SHOW + code).split("=====")
    assert "10.231.9.0/24 via 10.231.7.3" in before and "fd00:231::2/64" in before
    # the kernel's own link-local address comes back when it has found no other of its kind
    kept = [line for line in before.splitlines() if "fe80" not in line and "valid_lft" not in line]
    for line in kept[1:]:
        assert line.strip() in after.replace(" proto static", ""), line
    assert "02:42:0a:e7:07:02" in after


def test_a_guest_learns_all_of_it() -> None:
    code = """
with nl.Netlink() as route:
    card, = network.cards(route)
print(card.name, card.mac, card.mtu, card.addresses)
for r in card.routes:
    print(r.destination or "default", r.prefix, r.gateway, r.source)
"""
    out = inside(code).splitlines()
    assert out[0] == "eth0 02:42:0a:e7:07:02 1400 [('10.231.7.2', 24), ('fd00:231::2', 64)]"
    assert out[1] == "10.231.8.0 24  10.231.7.2"  # by the link, before those that may need it
    assert set(out[2:]) == {"default 0 10.231.7.1 ", "10.231.9.0 24 10.231.7.3 "}


def test_frames_and_the_name_server_pass(tmp_path: Path) -> None:
    """A guest behind the tap, played here by a raw frame: its ARP request for 127.0.0.11 is answered by the
    bridge, which no NAT could do; and a neighbour outside gets what the guest sends."""
    code = """
import select, socket, struct
with nl.Netlink() as route:
    found = network.cards(route)
network.hand_over(found)
tap, mac = found[0].tap, bytes.fromhex("02420ae70702")
def arp(target):
    body = struct.pack("!HHBBH", 1, 0x800, 6, 4, 1) + mac + socket.inet_aton("10.231.7.2") + bytes(6)
    return bytes(10) + b"\\xff" * 6 + mac + b"\\x08\\x06" + body + socket.inet_aton(target)
def answers(frame, wanted):
    for _ in range(50):
        os.write(tap, frame)
        while select.select([tap], [], [], 0.1)[0]:
            got = os.read(tap, 2048)[10:]
            is_answer = got[12:14] == b"\\x08\\x06" and got[20:22] == b"\\x00\\x02"
            if is_answer and got[28:32] == socket.inet_aton(wanted):
                return True
    return False
assert answers(arp("127.0.0.11"), "127.0.0.11")
pid = os.environ["OUTSIDE"]
for words in ("link set outer up", "address add 10.231.7.1/24 dev outer"):
    subprocess.run(["nsenter", f"--net=/proc/{pid}/ns/net", "ip", *words.split()], check=True)
assert answers(arp("10.231.7.1"), "10.231.7.1")
print("both")
"""
    assert inside(code) == "both\n"
