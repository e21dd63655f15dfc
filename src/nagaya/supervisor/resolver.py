"""The resolver at 127.0.0.11 of all containers in networks of their own: one epoll, no thread.

It has a UDP and a listening TCP socket of each container's namespace, answers what `dnszone` knows, and asks
the other servers for the rest, from the host's namespace. Everything a container can make it hold is
bounded, for each container and for all: questions under way, connections, bytes, time. What is over the bound
is refused or dropped; nobody else notices.
"""

from __future__ import annotations

import os
import time
from _socket import (
    AF_INET,
    AF_INET6,
    SO_TYPE,
    SOCK_CLOEXEC,
    SOCK_DGRAM,
    SOCK_NONBLOCK,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)
from select import EPOLLIN, EPOLLOUT, epoll

from nagaya.network import dnsmessage as dns
from nagaya.network.dnszone import Zones

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from nagaya.network.dnsmessage import Query

_PORT = 53
_PATIENCE = 2.0  # seconds that a server gets before the next one is asked
_IDLE = 10.0  # seconds that a TCP client may take
_QUESTIONS, _QUESTIONS_EACH = 1024, 128  # under way at other servers
_CLIENTS, _CLIENTS_EACH = 256, 32  # connected by TCP
_MOST = 65535
_TURN = 32  # datagrams of one container read in a row


class _House:
    """One container's sockets, and how much of it is under way."""

    __slots__ = ("clients", "listener", "questions", "token", "udp")

    def __init__(self, token: str) -> None:
        self.token = token
        self.udp: socket | None = None
        self.listener: socket | None = None
        self.questions = 0
        self.clients: set[_Client] = set()

    @property
    def container(self) -> str:
        return self.token.partition("-")[2]


class _Client:
    """A TCP connection of a container."""

    __slots__ = ("deadline", "house", "out", "pending", "sock", "unread")

    def __init__(self, house: _House, sock: socket) -> None:
        self.house = house
        self.sock = sock
        self.unread = b""
        self.out = b""
        self.pending = 0
        self.deadline = time.monotonic() + _IDLE


class _Question:
    """A query that another server is asked."""

    __slots__ = ("answer", "data", "deadline", "house", "number", "out", "query", "servers", "sock", "tcp",
                 "unread")  # fmt: skip

    def __init__(
        self,
        house: _House,
        query: Query,
        data: bytes,
        servers: list[str],
        answer: Callable[[bytes], None],
        *,
        tcp: bool,
    ) -> None:
        self.house = house
        self.query = query
        self.data = data
        self.servers = servers
        self.answer = answer
        self.tcp = tcp
        self.sock: socket | None = None
        self.number = 0
        self.deadline = 0.0
        self.out = b""
        self.unread = b""


class Resolver:
    """The sockets and what is under way. Its owner's loop calls `turn`."""

    def __init__(self, poll: epoll, zones: Zones) -> None:
        self._epoll = poll
        self._zones = zones
        self._houses: dict[str, _House] = {}
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._questions: set[_Question] = set()
        self._clients: set[_Client] = set()
        self._spin = 0

    # containers

    def add(self, token: str, fds: list[int]) -> None:
        """The sockets of a container; they are ours."""
        house = self._houses.setdefault(token, _House(token))
        for fd in fds:
            sock = socket(-1, -1, -1, fileno=fd)
            os.set_blocking(fd, False)
            datagrams = sock.getsockopt(SOL_SOCKET, SO_TYPE) == SOCK_DGRAM
            if (house.udp if datagrams else house.listener) is not None:
                sock.close()  # told twice: after a keeper's death
            elif datagrams:
                house.udp = sock
                self._listen(fd, lambda _, house=house: self._datagrams(house))  # type: ignore[misc]
            else:
                house.listener = sock
                self._listen(fd, lambda _, house=house: self._accept(house))  # type: ignore[misc]

    def remove(self, token: str) -> None:
        """The container has gone."""
        house = self._houses.pop(token, None)
        if house is None:
            return
        for question in [q for q in self._questions if q.house is house]:
            self._end(question)
        for client in list(house.clients):
            self._drop(client)
        for sock in (house.udp, house.listener):
            if sock is not None:
                self._ignore(sock.fileno())
                sock.close()
        self._zones.forget(house.container)

    # the loop's part

    def _listen(self, fd: int, handler: Callable[[int], None], events: int = EPOLLIN) -> None:
        self._epoll.register(fd, events)
        self._handlers[fd] = handler

    def _ignore(self, fd: int) -> None:
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def handles(self, fd: int, events: int) -> None:
        """Do what is to be done about a descriptor of ours."""
        handler = self._handlers.get(fd)
        if handler is not None:
            handler(events)

    def timeout(self) -> float:
        """Seconds until `expire` must be called; -1: nothing waits."""
        deadlines = [q.deadline for q in self._questions] + [c.deadline for c in self._clients]
        return max(0.0, min(deadlines) - time.monotonic()) if deadlines else -1

    def expire(self) -> None:
        """Go on without those who did not answer, and without clients that say nothing."""
        now = time.monotonic()
        for question in [q for q in self._questions if q.deadline <= now]:
            self._next_server(question)
        for client in [c for c in self._clients if c.deadline <= now]:
            self._drop(client)

    # what containers ask

    def _datagrams(self, house: _House) -> None:
        sock = house.udp
        for _ in range(_TURN):
            if sock is None:
                return
            try:
                data, sender = sock.recvfrom(4096)
            except OSError:
                return

            def reply(answer: bytes, sender: tuple[str, int] = sender) -> None:
                try:
                    sock.sendto(answer, sender)
                except OSError:
                    pass  # it does not listen any more, or its buffer is full: it will ask again

            self._ask(house, data, reply, tcp=False)

    def _accept(self, house: _House) -> None:
        if house.listener is None:
            return
        try:
            fd, _ = house.listener._accept()  # type: ignore[attr-defined]
        except OSError:
            return
        sock = socket(-1, -1, -1, fileno=fd)
        os.set_inheritable(fd, False)
        os.set_blocking(fd, False)
        if len(self._clients) >= _CLIENTS or len(house.clients) >= _CLIENTS_EACH:
            sock.close()
            return
        client = _Client(house, sock)
        house.clients.add(client)
        self._clients.add(client)
        self._listen(fd, lambda events: self._client_ready(client, events))

    def _client_ready(self, client: _Client, events: int) -> None:
        if events & EPOLLOUT:
            self._flush(client)
        if client not in self._clients or not events & ~EPOLLOUT:
            return
        try:
            data = client.sock.recv(16384)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(client)
            return
        client.deadline = time.monotonic() + _IDLE
        client.unread += data
        while len(client.unread) >= 2 and client in self._clients:
            length = int.from_bytes(client.unread[:2], "big")
            if len(client.unread) < 2 + length:
                return
            message, client.unread = client.unread[2 : 2 + length], client.unread[2 + length :]
            client.pending += 1
            self._ask(client.house, message, lambda answer: self._reply(client, answer), tcp=True)

    def _reply(self, client: _Client, answer: bytes) -> None:
        if client not in self._clients:
            return
        client.pending -= 1
        if len(client.out) > _MOST:  # it asks and does not read
            self._drop(client)
            return
        client.out += len(answer).to_bytes(2, "big") + answer
        self._flush(client)

    def _flush(self, client: _Client) -> None:
        try:
            while client.out:
                client.out = client.out[client.sock.send(client.out) :]
        except BlockingIOError:
            pass
        except OSError:
            self._drop(client)
            return
        self._epoll.modify(client.sock.fileno(), EPOLLIN | (EPOLLOUT if client.out else 0))

    def _drop(self, client: _Client) -> None:
        self._clients.discard(client)
        client.house.clients.discard(client)
        self._ignore(client.sock.fileno())
        client.sock.close()

    def _ask(self, house: _House, data: bytes, reply: Callable[[bytes], None], *, tcp: bool) -> None:
        query = dns.parse(data)
        if query is None:
            return
        if isinstance(query, int):
            reply(dns.refusal(data, query))
            return
        own = self._own_answer(house, query, 0 if tcp else query.size)
        if own is not None:
            reply(own)
            return
        servers = self._zones.servers(house.container)
        if not servers:
            reply(dns.failure(query, dns.SERVFAIL))
            return
        if len(self._questions) >= _QUESTIONS or house.questions >= _QUESTIONS_EACH:
            reply(dns.failure(query, dns.SERVFAIL))
            return
        question = _Question(house, query, data, servers, reply, tcp=tcp)
        house.questions += 1
        self._questions.add(question)
        self._next_server(question)

    def _own_answer(self, house: _House, query: Query, limit: int) -> bytes | None:
        """The answer to a question about a neighbour; None: it is not about one."""
        if query.kind == dns.PTR:
            address = dns.reverse_address(query.name)
            name = self._zones.name_of(house.container, address) if address else ""
            return dns.answer(query, pointer=name, limit=limit) if name else None
        found = self._zones.addresses(house.container, query.name)
        if found is None:
            return None
        # of a name that exists there is no other record: a server out there must not be asked for it
        wanted = {dns.A: "4", dns.AAAA: "6"}.get(query.kind, "")
        chosen = [a for a in found if ("6" if ":" in a else "4") == wanted]
        self._spin += 1
        turn = self._spin % len(chosen) if chosen else 0
        return dns.answer(query, chosen[turn:] + chosen[:turn], limit=limit)

    # other servers

    def _next_server(self, question: _Question) -> None:
        self._close(question)
        while question.servers:
            server = question.servers.pop(0)
            try:
                self._send(question, server)
                return
            except OSError:
                self._close(question)
        self._end(question)
        question.answer(dns.failure(question.query, dns.SERVFAIL))

    def _send(self, question: _Question, server: str) -> None:
        """Ask one server, by a socket of its own: its port is as hard to guess as the id."""
        family = AF_INET6 if ":" in server else AF_INET
        kind = SOCK_STREAM if question.tcp else SOCK_DGRAM
        sock = question.sock = socket(family, kind | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)
        question.number = int.from_bytes(os.urandom(2), "big")
        question.deadline = time.monotonic() + _PATIENCE
        question.unread = b""
        message = dns.renumbered(question.data, question.number)
        if question.tcp:
            question.out = len(message).to_bytes(2, "big") + message
            try:
                sock.connect((server, _PORT))
            except BlockingIOError:
                pass
            events = EPOLLIN | EPOLLOUT
        else:
            sock.connect((server, _PORT))
            sock.send(message)
            events = EPOLLIN
        self._listen(sock.fileno(), lambda happened: self._heard(question, happened), events)

    def _heard(self, question: _Question, events: int) -> None:
        sock = question.sock
        if sock is None:
            return
        try:
            if question.out and events & EPOLLOUT:
                question.out = question.out[sock.send(question.out) :]
                if not question.out:
                    self._epoll.modify(sock.fileno(), EPOLLIN)
            if not events & ~EPOLLOUT:
                return
            data = sock.recv(_MOST)
        except BlockingIOError:
            return
        except OSError:  # nobody listens there
            self._next_server(question)
            return
        if question.tcp:
            question.unread += data
            length = int.from_bytes(question.unread[:2], "big")
            if len(question.unread) < 2 or len(question.unread) < 2 + length:
                if not data:
                    self._next_server(question)
                return
            data = question.unread[2 : 2 + length]
        if int.from_bytes(data[:2], "big") != question.number or not dns.answers(data, question.query):
            if question.tcp:
                self._next_server(question)
            return  # a forgery, or late: the right one may come
        if data[3] & 0x0F in (dns.SERVFAIL, dns.REFUSED) and question.servers:
            self._next_server(question)
            return
        self._end(question)
        question.answer(dns.renumbered(data, question.query.number))

    def _close(self, question: _Question) -> None:
        sock, question.sock = question.sock, None
        if sock is not None:
            self._ignore(sock.fileno())
            sock.close()

    def _end(self, question: _Question) -> None:
        if question in self._questions:
            self._questions.discard(question)
            question.house.questions -= 1
        self._close(question)
