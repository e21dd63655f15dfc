"""Networks that are only settings for others (`docker network create --config-only`, `--config-from`).

What belongs to one machine, subnets and the driver's options, is said once; networks that say so have it. The
words are libnetwork's.
"""

from __future__ import annotations

import msgspec

from nagaya.engine.model import Network, NetworkCreation
from nagaya.engine.nettable import NetworkTable
from nagaya.errors import NotFound, PermissionDenied


def completed(networks: NetworkTable, asked: NetworkCreation) -> NetworkCreation:
    """What was asked for with the settings that it borrows. Raises NotFound, PermissionDenied."""
    if asked.config_only:
        if asked.config_from:
            raise PermissionDenied("a configuration network cannot depend on another configuration network")
        if asked.internal or asked.attachable:
            raise PermissionDenied(
                "configuration network can only contain network specific fields. Network operator fields "
                "like [ ingress | internal | attachable | scope ] are not supported."
            )
        return msgspec.structs.replace(asked, driver="null")
    if not asked.config_from:
        return asked
    if asked.options:
        raise PermissionDenied(
            "network driver options are not supported if the network depends on a configuration network"
        )
    if asked.ipam or asked.ipam_options or asked.labels or asked.ipv6 or not asked.ipv4:
        raise PermissionDenied(
            "user specified configurations are not supported if the network depends on a configuration "
            "network"
        )
    lender = networks.get(asked.config_from)
    if lender is None or not lender.asked.config_only:
        raise NotFound(f'configuration network "{asked.config_from}" does not exist')
    given = lender.asked
    return msgspec.structs.replace(
        asked,
        config_from=lender.name,
        ipv4=given.ipv4,
        ipv6=given.ipv6,
        ipam_driver=given.ipam_driver,
        ipam_options=given.ipam_options,
        ipam=given.ipam,
        options=given.options,
        labels=given.labels,
    )


def check_unused(networks: NetworkTable, network: Network) -> None:
    """Raise PermissionDenied while others have its settings."""
    if network.asked.config_only and any(other.asked.config_from == network.name for other in networks):
        raise PermissionDenied(
            f'error while removing network: configuration network "{network.name}" is in use'
        )
