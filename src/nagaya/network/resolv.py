"""What a container's resolv.conf, hosts and hostname say. Pure text; the engine writes the files.

As dockerd does for its default bridge: the host's nameservers unless the user named some, without
those that only the host can reach (127/8, IPv6 while networks are IPv4 only). Everything the user
gives is checked by a grammar: a line break in a name would be a line of the file's.
See resolv.conf(5), hosts(5).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from nagaya.errors import InvalidArgument

HOST_RESOLV_CONF = "/etc/resolv.conf"
SYSTEMD_RESOLV_CONF = "/run/systemd/resolve/resolv.conf"
_SYSTEMD_STUB = "127.0.0.53"
_PUBLIC = ("8.8.8.8", "8.8.4.4")  # what dockerd falls back to

EMBEDDED = "127.0.0.11"  # our resolver, in networks where containers have names

_OPTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9:._-]{0,127}")
_LABEL = r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?"
_DOMAIN = re.compile(rf"(?=.{{1,253}}\Z){_LABEL}(\.{_LABEL})*\.?")
_MAX_FILE = 64 * 1024
_HOSTS_HEAD = (
    "127.0.0.1\tlocalhost\n"
    "::1\tlocalhost ip6-localhost ip6-loopback\n"
    "fe00::\tip6-localnet\n"
    "ff00::\tip6-mcastprefix\n"
    "ff02::1\tip6-allnodes\n"
    "ff02::2\tip6-allrouters\n"
)


class Resolver:
    """The directives of a resolv.conf that matter to a container."""

    __slots__ = ("nameservers", "options", "search")

    def __init__(
        self, nameservers: Sequence[str] = (), search: Sequence[str] = (), options: Sequence[str] = ()
    ) -> None:
        self.nameservers = tuple(nameservers)
        self.search = tuple(search)
        self.options = tuple(options)


def parse(text: str) -> Resolver:
    """The directives of a resolv.conf; of several search or domain lines the last counts, as libc has it.
    Values that no such file should have are left out."""
    nameservers: list[str] = []
    search: list[str] = []
    options: list[str] = []
    for line in text[:_MAX_FILE].splitlines():
        words = line.split()
        if not words or words[0][0] in "#;":
            continue
        if words[0] == "nameserver" and len(words) > 1 and _is_address(words[1].partition("%")[0]):
            nameservers.append(words[1])
        elif words[0] in ("search", "domain"):
            search = [word for word in words[1:] if word == "." or _DOMAIN.fullmatch(word)]
        elif words[0] == "options":
            options += [word for word in words[1:] if _OPTION.fullmatch(word)]
    return Resolver(nameservers, search, options)


def host_source(text: str) -> str:
    """Which file tells the host's real nameservers, given the text of /etc/resolv.conf: systemd-resolved's
    own when the only nameserver is its stub."""
    return SYSTEMD_RESOLV_CONF if parse(text).nameservers == (_SYSTEMD_STUB,) else HOST_RESOLV_CONF


def resolv_conf(
    host: str,
    *,
    dns: Sequence[str] = (),
    search: Sequence[str] = (),
    options: Sequence[str] = (),
    own_network: bool = True,
) -> str:
    """A container's resolv.conf, from the text of the host's and the user's --dns, --dns-search ("."
    means none), --dns-option. own_network False: the container shares the host's network and may use
    its local resolvers. Raises InvalidArgument.
    """
    theirs = parse(host)
    for address in dns:
        if not _is_address(address):
            raise InvalidArgument(f"invalid DNS server address {address!r}", subject="dns")
    for domain in search:
        if domain != "." and not _DOMAIN.fullmatch(domain):
            raise InvalidArgument(f"invalid DNS search domain {domain!r}", subject="dns-search")
    for option in options:
        if not _OPTION.fullmatch(option):
            raise InvalidArgument(f"invalid DNS option {option!r}", subject="dns-option")
    nameservers = tuple(dns) or tuple(a for a in theirs.nameservers if not own_network or _reachable(a))
    if not nameservers and own_network:
        nameservers = _PUBLIC
    domains = tuple(search) or theirs.search
    if "." in search:
        domains = ()
    lines = [f"nameserver {address}" for address in nameservers]
    if domains:
        lines.append(f"search {' '.join(domains)}")
    chosen = tuple(options) or theirs.options
    if EMBEDDED in nameservers and not any(option.startswith("ndots:") for option in chosen):
        chosen = (*chosen, "ndots:0")  # as dockerd: a bare name is a neighbour's before it is anything else
    if chosen:
        lines.append(f"options {' '.join(chosen)}")
    return "".join(f"{line}\n" for line in lines)


def _is_address(text: str) -> bool:
    try:
        IPv6Address(text) if ":" in text else IPv4Address(text)
    except AddressValueError:
        return False
    return "%" not in text


def _reachable(address: str) -> bool:
    # from an IPv4-only network namespace of its own
    return ":" not in address and not IPv4Address(address).is_loopback


def parse_extra_host(text: str, gateway: str) -> tuple[str, str]:
    """(name, address) of --add-host NAME:ADDRESS; the address "host-gateway" is the bridge's.

    Raises InvalidArgument.
    """
    name, colon, address = text.partition(":")
    if address == "host-gateway":
        if not gateway:
            raise InvalidArgument(
                f"extra host {text!r}: this network has no gateway for host-gateway", subject="add-host"
            )
        address = gateway
    address = address.removeprefix("[").removesuffix("]") if address.startswith("[") else address
    if not colon or not _DOMAIN.fullmatch(name) or not _is_address(address):
        raise InvalidArgument(f"bad format for add-host: {text!r}", subject="add-host")
    return name, address


def hosts(
    *,
    addresses: Iterable[str] = (),
    hostname: str = "",
    domainname: str = "",
    extra: Sequence[str] = (),
    gateway: str = "",
    links: Sequence[tuple[str, str]] = (),
) -> str:
    """A container's /etc/hosts: localhost, the user's --add-host, its links ((address, names) each), and its
    own addresses under its name.

    Raises InvalidArgument.
    """
    lines = [_HOSTS_HEAD]
    for text in extra:
        name, address = parse_extra_host(text, gateway)
        lines.append(f"{address}\t{name}\n")
    lines += [f"{address}\t{names}\n" for address, names in links]
    if hostname:
        check_hostname(hostname)
        names = hostname
        if domainname:
            check_hostname(domainname)
            names = f"{hostname}.{domainname} {hostname}"
        lines += [f"{address}\t{names}\n" for address in addresses]
    return "".join(lines)


def hostname_file(hostname: str) -> str:
    """A container's /etc/hostname. Raises InvalidArgument."""
    check_hostname(hostname)
    return f"{hostname}\n"


def check_hostname(name: str) -> None:
    """Raise InvalidArgument unless it can be a host or domain name."""
    if not _DOMAIN.fullmatch(name):
        raise InvalidArgument(f"invalid hostname {name[:300]!r}", subject="hostname")
