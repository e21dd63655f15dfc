"""What happens to frames on a guest's tap: limits, and the metadata service that nobody else sees. The guest
is played: whoever holds the tap's descriptor is on its other side."""

from __future__ import annotations

import socket
import subprocess
import sys
import textwrap

import pytest

from nagaya.api.firecracker import cards, models
from nagaya.linux import packets

BUCKET = models.TokenBucketConfig(size=1000, refill_time=100, one_time_burst=500)
LIMITS = models.RateLimiterConfig(bandwidth=BUCKET, ops=models.TokenBucketConfig(size=3, refill_time=1000))


def card(limits: models.RateLimiterConfig | None = None) -> models.NetworkInterfaceConfig:
    return models.NetworkInterfaceConfig(iface_id="a", host_dev_name="t0", rx_rate_limiter=limits)


def test_rules() -> None:
    assert cards.rules(7, "t0", card()) == ""
    made = cards.rules(7, "t0", card(LIMITS), "169.254.169.254")
    assert made == (
        "add table netdev nagvmm7\ndelete table netdev nagvmm7\ntable netdev nagvmm7 {\n"
        'chain ingress { type filter hook ingress device "t0" priority 0; policy accept;\n'
        "ip daddr 169.254.169.254 ip protocol tcp drop\narp daddr ip 169.254.169.254 drop\n}\n"
        'chain egress { type filter hook egress device "t0" priority 0; policy accept;\n'
        "limit rate over 10000 bytes/second burst 1500 bytes drop\n"
        "limit rate over 180/minute burst 3 packets drop\n}\n}\n"
    )


# In a network namespace of its own: the tap t0, and a guest on it that is another namespace behind a second
# tap, whose frames a thread carries to and fro.
STAGE = """
import os, select, socket, subprocess, sys, threading, time
from nagaya.api.firecracker import cards, models
from nagaya.api.firecracker.mmds import Mmds
from nagaya.api.firecracker.server import Loop
from nagaya.linux import namespaces, nftables, tap
from nagaya.linux import netlink as nl

def ip(words):
    for line in words.strip().splitlines():
        subprocess.run(["ip", *line.split()], check=True)

ours = tap.open_tap("t0")
guest_tap = []
def guest_side():
    namespaces.unshare(namespaces.CLONE_NEWNET)
    guest_tap.append(tap.open_tap("eth0"))
    ip('''link set lo up
        link set eth0 address 06:00:00:00:00:05 up
        addr add 10.231.77.2/24 dev eth0
        route add default dev eth0''')
    done.wait()
done = threading.Event()
thread = threading.Thread(target=guest_side)
thread.start()
ip('''link set lo up
    link set t0 up
    addr add 10.231.77.1/24 dev t0''')
while not guest_tap:
    time.sleep(0.01)
time.sleep(0.1)
def carry(source, target):
    while True:
        frame = os.read(source, 70000)
        try:
            os.write(target, frame)
        except OSError:
            pass
for pair in ((ours, guest_tap[0]), (guest_tap[0], ours)):
    threading.Thread(target=carry, args=pair, daemon=True).start()
def in_guest(*argv):
    return subprocess.run(["nsenter", f"--net=/proc/{os.getpid()}/task/{thread.native_id}/ns/net", *argv],
        capture_output=True, text=True, timeout=30)
"""


def on_stage(code: str) -> list[str]:
    body = textwrap.indent(STAGE + textwrap.dedent(code), "    ")
    script = f"import os, sys, traceback\ntry:\n{body}\nexcept BaseException:\n    traceback.print_exc()\n"
    script += "    os._exit(1)\nsys.stdout.flush()\nos._exit(0)\n"
    words = ["unshare", "--net", sys.executable, "-c", script]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


pytestmark = [pytest.mark.root, pytest.mark.network]


def test_metadata() -> None:
    """By the guest's own TCP and a real HTTP client; the host sees none of it, and is not in its way."""
    said = on_stage(
        """
        mmds = Mmds(51200)
        mmds.put({"latest": {"id": "i-" + "x" * 20000}})
        loop = Loop()
        counts = {}
        service = cards.MetadataService(loop, mmds, "169.254.169.254", ["t0"],
            lambda name, by: counts.__setitem__(name, counts.get(name, 0) + by))
        nft = nftables.Nftables()
        with nl.Netlink() as route:
            index = route.link("t0").index
        config = models.NetworkInterfaceConfig(iface_id="a", host_dev_name="t0")
        nft.run(cards.rules(index, "t0", config, "169.254.169.254"))
        threading.Thread(target=loop.run, daemon=True).start()
        curl = ["curl", "-sS", "-m", "20", "-w", " %{http_code}"]
        print(len(in_guest(*curl, "http://169.254.169.254/latest/id").stdout))
        mmds.version = "V2"
        print(in_guest(*curl, "http://169.254.169.254/latest/id").stdout[-4:])
        token = in_guest("curl", "-sS", "-X", "PUT", "-H", "X-metadata-token-ttl-seconds: 60",
            "http://169.254.169.254/latest/api/token").stdout
        print(in_guest(*curl, "-H", "X-metadata-token: " + token, "http://169.254.169.254/latest/").stdout)
        print(in_guest("curl", "-sS", "-m", "5", "http://169.254.169.254:81/").returncode)  # refused
        print(in_guest("curl", "-sS", "-m", "5", "http://10.231.77.1:81/").returncode)
        neighbours = subprocess.run(["ip", "neigh"], capture_output=True, text=True).stdout
        print("10.231.77.2" in neighbours, "169.254" in neighbours, counts["rx_accepted"] > 10)
        loop.stop(0)
        nft.run(cards.removal(index))
        print(repr(nft.run("list tables")))
        """
    )
    assert said == ["20006", " 401", "id 200", "7", "7", "True False True", "''"]


def test_limits() -> None:
    """1000 bytes per 100 ms from the guest: of 100 packets of 500 bytes at once, few come through."""
    said = on_stage(
        """
        nft = nftables.Nftables()
        with nl.Netlink() as route:
            index = route.link("t0").index
        limit = models.RateLimiterConfig(bandwidth=models.TokenBucketConfig(size=2000, refill_time=1000))
        config = models.NetworkInterfaceConfig(iface_id="a", host_dev_name="t0", tx_rate_limiter=limit)
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("10.231.77.1", 7777))
        receiver.settimeout(0.5)
        send = ["python3", "-c", "import socket,sys\\ns=socket.socket(2,2)\\n"
            "for _ in range(100): s.sendto(bytes(460), (sys.argv[1], 7777))"]
        def received():
            count = 0
            try:
                while receiver.recv(2000):
                    count += 1
            except TimeoutError:
                return count
        in_guest("curl", "-sS", "-m", "5", "http://10.231.77.1:81/")
        in_guest(*send, "10.231.77.1")
        print(received())
        nft.run(cards.rules(index, "t0", config))
        in_guest(*send, "10.231.77.1")
        print(received())
        """
    )
    assert said[0] == "100"
    assert 2 <= int(said[1]) <= 20


def test_the_filter_takes_only_the_service() -> None:
    """The kernel's own judgement, on a pair of sockets."""
    ether = bytes(12)
    address = socket.inet_aton("169.254.169.254")
    tcp = ether + b"\x08\x00" + bytes(9) + b"\x06" + bytes(6) + address + bytes(20)
    arp = ether + b"\x08\x06" + bytes(24) + address
    other = socket.inet_aton("10.0.0.1")
    frames = {
        "tcp": tcp,
        "arp": arp,
        "udp": tcp.replace(b"\x06", b"\x11"),
        "tcp elsewhere": tcp.replace(address, other),
        "arp for another": arp.replace(address, other),
        "ipv6": ether + b"\x86\xdd" + bytes(60),
        "short": ether + b"\x08\x00",
    }
    one, two = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    packets.attach_filter(two, cards.bpf("169.254.169.254"))
    for frame in frames.values():
        try:
            one.send(frame)
        except OSError:
            pass  # so a refusal is told between sockets of this kind
    two.setblocking(False)
    taken = []
    try:
        while data := two.recv(4096):
            taken += [name for name, frame in frames.items() if data == frame]
    except BlockingIOError:
        pass
    one.close()
    two.close()
    assert taken == ["tcp", "arp"]
