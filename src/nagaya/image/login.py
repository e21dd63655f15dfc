"""Does a registry take these credentials? (`docker login`; distribution-spec, "Determining Support")."""

from __future__ import annotations

from nagaya.errors import InvalidArgument, Unauthenticated, Unavailable
from nagaya.image import auth as auths
from nagaya.image.auth import RegistryAuth
from nagaya.image.complaints import status_line
from nagaya.image.jobs import Check
from nagaya.image.session import Session
from nagaya.image.transport import RegistryConfig, Transport
from nagaya.oci import reference
from nagaya.oci.reference import Reference


def try_credentials(
    address: str, auth: RegistryAuth, config: RegistryConfig, schemes: dict[str, str], check: Check
) -> None:
    """Ask the registry at an address (a host, or a URL of it; "": Docker Hub) whether it takes them.

    Raises InvalidArgument (no address), Unauthenticated in dockerd's words, Unavailable.
    """
    host = address.partition("://")[2] or address
    host = host.partition("/")[0]
    if host in ("", "index.docker.io", "registry-1.docker.io"):
        host = auths.DOCKER_HUB
    try:
        domain = reference.parse(f"{host}/x").domain
    except InvalidArgument:
        domain = ""
    if domain != host:
        raise InvalidArgument(f"{address[:200]!r} is no address of a registry", subject="serveraddress")
    transport = Transport(config, schemes)
    try:
        session = Session(Reference(host, ""), config, transport, auth, check)
        answer = session.ping()
        answer.close()
        challenge = answer.headers.get("WWW-Authenticate", "").lower()
        if answer.status == 401 and challenge.startswith("basic") and not auth:
            raise Unauthenticated(f'Get "{answer.url}": no basic auth credentials', subject=host)
        if answer.status != 200:
            kind = Unauthenticated if answer.status in (401, 403) else Unavailable
            raise kind(
                f"login attempt to {answer.url} failed with status: {status_line(answer.status)}",
                subject=host,
            )
    finally:
        transport.cut()
