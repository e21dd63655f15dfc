"""What the host does with the frames of a guest's network card: rate limiters, and the metadata service.

QEMU gives a tap's frames to the kernel and takes them from it; both ways are open to nftables where the
device begins (table family netdev, hooks ingress and egress), so limits cost no detour. Frames beyond them
are dropped, where Firecracker's wait: TCP does not mind.

The metadata service's address is no address of the host. Frames for it are seen by a packet socket before
the kernel drops them; they and the answers pass through a second tap into a network namespace in which
nothing is but that address and a listening socket. So the kernel's TCP answers the guest, and reaches nobody.
"""

from __future__ import annotations

import os
import select
import socket
import struct
import threading
from _socket import SocketType
from collections.abc import Callable, Mapping

from nagaya.api.firecracker import models
from nagaya.api.firecracker.mmds import Mmds
from nagaya.api.firecracker.server import Loop, Reply, Server
from nagaya.errors import NagayaError
from nagaya.linux import namespaces, packets, tap
from nagaya.linux import netlink as nl

_VNET_HDR = 10
_MAX_FRAME = _VNET_HDR + 14 + 65536
_FRAMES = 64  # at a time
_TAP = "mmds0"
_MAC = "06:01:23:45:67:01"  # Firecracker's, so that a restored guest's neighbours stay the same
_MTU = 1500
_INSTRUCTION = struct.Struct("HBBI")
_REQUEST_LIMIT = 51200


def rules(index: int, name: str, card: models.NetworkInterfaceConfig, metadata_address: str = "") -> str:
    """nft's commands that make the table of a card's tap anew; "" where none is needed. Pure."""
    ingress = _limits(card.tx_rate_limiter)
    egress = _limits(card.rx_rate_limiter)
    if metadata_address:
        ingress[:0] = [
            f"ip daddr {metadata_address} ip protocol tcp drop",
            f"arp daddr ip {metadata_address} drop",
        ]
    chains = ""
    for hook, lines in (("ingress", ingress), ("egress", egress)):
        if lines:
            head = f'type filter hook {hook} device "{name}" priority 0; policy accept;'
            chains += f"chain {hook} {{ {head}\n" + "\n".join(lines) + "\n}\n"
    return f"{removal(index)}table netdev {table(index)} {{\n{chains}}}\n" if chains else ""


def table(index: int) -> str:
    """The name of the table of the tap with that index."""
    return f"nagvmm{index}"


def removal(index: int) -> str:
    """nft's commands that remove the table, whether there is one or not. Pure."""
    return f"add table netdev {table(index)}\ndelete table netdev {table(index)}\n"


def _limits(limiter: models.RateLimiterConfig | None) -> list[str]:
    """A bucket of `size` that is full again after `refill_time` ms, as rate and burst of nft's limit."""
    found = []
    for bucket, unit in ((limiter and limiter.bandwidth, "bytes"), (limiter and limiter.ops, "")):
        if not bucket:
            continue
        burst = min(bucket.size + (bucket.one_time_burst or 0), 0xFFFFFFFF)
        per_minute = max(1, bucket.size * 60000 // bucket.refill_time)
        rate = f"{per_minute}{'' if unit else '/minute'}"
        if unit:  # its rates are whole numbers of bytes per second
            rate = f"{max(1, min(per_minute // 60, 1 << 40))} bytes/second"
        found.append(f"limit rate over {rate} burst {max(burst, 1)} {unit or 'packets'} drop")
    return found


def bpf(address: str) -> bytes:
    """A socket's filter (Documentation/networking/filter.rst): ARP and TCP for that address. Pure."""
    wanted = int.from_bytes(socket.inet_aton(address), "big")
    load_half, load_word, load_byte, equal, done = 0x28, 0x20, 0x30, 0x15, 0x06
    lines = [
        (load_half, 0, 0, 12),
        (equal, 0, 2, 0x0806),
        (load_word, 0, 0, 38),  # whom ARP asks for
        (equal, 5, 6, wanted),
        (equal, 0, 5, 0x0800),
        (load_byte, 0, 0, 23),
        (equal, 0, 3, 6),
        (load_word, 0, 0, 30),
        (equal, 0, 1, wanted),
        (done, 0, 0, 0xFFFFFFFF),
        (done, 0, 0, 0),
    ]
    return b"".join(_INSTRUCTION.pack(*line) for line in lines)


class Hall:
    """A network namespace with a tap and a listening socket in it, made by a thread that has gone."""

    def __init__(self) -> None:
        """Raises NagayaError, OSError."""
        self.tap = -1
        failed: list[BaseException] = []

        def make() -> None:
            try:
                namespaces.unshare(namespaces.CLONE_NEWNET)
                self.tap = tap.open_tap(_TAP)
                self.netlink = nl.Netlink()
                self.listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
                self.listener.bind(("0.0.0.0", 80))
                self.listener.listen(16)
            except (NagayaError, OSError) as error:
                failed.append(error)

        thread = threading.Thread(target=make)
        thread.start()
        thread.join()
        if failed:
            self.close()
            raise failed[0]

    def set_address(self, address: str) -> None:
        """Its one address, and the way to everyone; what it had before goes. Raises KernelError."""
        link = self.netlink.link(_TAP)
        index = link.index if link else 0
        # whatever address the guest has, it is on this link
        self.netlink.batch(
            [
                nl.link_set(index=index, address=_MAC, up=False),
                *(nl.address_del(at, old, size) for at, old, size in self.netlink.addresses() if at == index),
                nl.link_set(index=index, up=True),
                nl.address_add(index, address, 32),
                nl.route_add("", index=index),
            ]
        )

    def close(self) -> None:
        """Let go what was made."""
        if self.tap >= 0:
            os.close(self.tap)
            self.tap = -1
        for one in (getattr(self, "netlink", None), getattr(self, "listener", None)):
            if one:
                one.close()


class MetadataService:
    """The guest's metadata on its taps. Everything happens in the loop."""

    def __init__(
        self,
        loop: Loop,
        mmds: Mmds,
        address: str,
        taps: list[str],
        count: Callable[[str, int], None],
        hall: Hall | None = None,
    ) -> None:
        """taps: their names in our network namespace; hall: one that was made before, and stays its maker's.
        Raises NagayaError, OSError."""
        self._loop = loop
        self._mmds = mmds
        self._count = count
        self._hall = hall or Hall()
        self._is_own = hall is None
        self._packets: list[SocketType] = []
        self._ways: dict[bytes, SocketType] = {}
        try:
            self._hall.set_address(address)
            for name in taps:
                self._packets.append(packets.open_packets(name, bpf(address)))
        except BaseException:
            self._close_sockets()
            raise
        os.set_blocking(self._hall.tap, False)
        loop.watch(self._hall.tap, select.EPOLLIN, self._to_guest)
        for way in self._packets:
            loop.watch(way.fileno(), select.EPOLLIN, self._from_guest(way))
        self._server = Server(loop, self._hall.listener.dup(), self._answer, _REQUEST_LIMIT, "MMDS")

    def close(self) -> None:
        """The service ends, and its network namespace."""
        self._server.close()
        self._loop.forget(self._hall.tap)
        for way in self._packets:
            self._loop.forget(way.fileno())
        self._close_sockets()

    def _close_sockets(self) -> None:
        for way in self._packets:
            way.close()
        if self._is_own:
            self._hall.close()

    def _from_guest(self, way: SocketType) -> Callable[[int], None]:
        def ready(_: int) -> None:
            for _ in range(_FRAMES):
                try:
                    frame = way.recv(_MAX_FRAME)
                except OSError:  # nothing more, or the tap is down
                    return
                self._count("rx_accepted", 1)
                if len(self._ways) < 1024 or frame[16:22] in self._ways:
                    self._ways[frame[16:22]] = way
                try:
                    os.write(self._hall.tap, frame)
                except OSError:
                    self._count("rx_bad_eth", 1)

        return ready

    def _to_guest(self, _: int) -> None:
        for _ in range(_FRAMES):
            try:
                frame = os.read(self._hall.tap, _MAX_FRAME)
            except OSError:
                return
            known = self._ways.get(frame[10:16])
            for way in [known] if known else self._packets:  # who has that address?
                try:
                    way.send(frame)
                    self._count("tx_frames", 1)
                except OSError:
                    self._count("tx_errors", 1)

    def _answer(self, method: str, path: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        return self._mmds.answer(method, path, headers)
