"""The runtime as a whole: version, readiness, features, cgroup driver."""

from __future__ import annotations

import json

import nagaya
from nagaya.api.cri import runtime_pb2 as cri
from nagaya.api.cri.context import Context, Unary
from nagaya.errors import InvalidArgument

_API = "v1"
_KUBELET = "0.1.0"  # what kubelets have always sent, and expect


async def version(context: Context, request: cri.VersionRequest) -> cri.VersionResponse:
    """Which runtime this is."""
    if request.version not in ("", _KUBELET, _API):
        raise InvalidArgument(f"unknown version {request.version!r}", subject="version")
    return cri.VersionResponse(
        version=_KUBELET,
        runtime_name="nagaya",
        runtime_version=nagaya.__version__,
        runtime_api_version=_API,
    )


async def status(context: Context, request: cri.StatusRequest) -> cri.StatusResponse:
    """Ready, and by what the network is made; the runtime handlers and their features."""
    network = await context.pods.network_condition()
    reply = cri.StatusResponse(
        status=cri.RuntimeStatus(
            conditions=[
                cri.RuntimeCondition(type="RuntimeReady", status=True),
                cri.RuntimeCondition(
                    type="NetworkReady",
                    status=network.ready,
                    reason=network.reason,
                    message=network.message,
                ),
            ]
        ),
        features=cri.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True),
    )
    settings = context.pods.world.settings
    own = cri.RuntimeHandlerFeatures(recursive_read_only_mounts=True, user_namespaces=True)
    for name in ("", "nagaya"):
        reply.runtime_handlers.append(cri.RuntimeHandler(name=name, features=own))
    for name in settings.runtimes:
        reply.runtime_handlers.append(cri.RuntimeHandler(name=name, features=cri.RuntimeHandlerFeatures()))
    if request.verbose:
        reply.info["config"] = json.dumps(
            {
                "root": settings.root,
                "run": settings.run,
                "cgroupDriver": settings.cgroup_driver,
                "defaultRuntime": settings.default_runtime,
                "runtimes": settings.runtimes,
                "cniConfDir": settings.cni_conf_dir,
                "cniBinDir": settings.cni_bin_dir,
            }
        )
    return reply


async def runtime_config(context: Context, request: cri.RuntimeConfigRequest) -> cri.RuntimeConfigResponse:
    """The cgroup driver, which a kubelet follows."""
    systemd = context.pods.world.settings.cgroup_driver == "systemd"
    driver = cri.SYSTEMD if systemd else cri.CGROUPFS
    return cri.RuntimeConfigResponse(linux=cri.LinuxRuntimeConfiguration(cgroup_driver=driver))


async def update_runtime_config(
    context: Context, request: cri.UpdateRuntimeConfigRequest
) -> cri.UpdateRuntimeConfigResponse:
    """The pod CIDR: CNI plugins and the bridge have their own addresses, so it is noted by nobody."""
    return cri.UpdateRuntimeConfigResponse()


UNARY: dict[str, Unary] = {
    "Version": version,
    "Status": status,
    "RuntimeConfig": runtime_config,
    "UpdateRuntimeConfig": update_runtime_config,
}
