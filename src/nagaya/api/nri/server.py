"""Plugins of the Node Resource Interface: they connect to a socket, register, learn what is there, and are
asked about what happens to pods and containers from then on, in the order of their indices.

A plugin that does not answer in time, or says what nobody understands, is left behind: its connection is
closed, and pods go on without it.
"""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, TypeVar

from google.protobuf.message import DecodeError, Message

import nagaya
from nagaya.api.http.server import listen_unix
from nagaya.api.nri import launching, translate, ttrpc
from nagaya.api.nri import nri_pb2 as nri
from nagaya.api.nri.launching import Launchable
from nagaya.engine import pods_plugins
from nagaya.engine.engine import Engine
from nagaya.engine.model import Container
from nagaya.engine.pods_model import LinuxResources, Pod
from nagaya.engine.pods_plugins import Adjustment, ContainerEvent, PodEvent
from nagaya.errors import FailedPrecondition, InvalidArgument, NagayaError, Unavailable

log = logging.getLogger(__name__)

M = TypeVar("M", bound=Message)

_VERSION = "0.12.0"
_PLUGIN, _RUNTIME = (f"nri.pkg.api.v1alpha1.{name}" for name in ("Plugin", "Runtime"))
_REGISTER = 5.0  # seconds
_SYNCHRONIZE = 30.0
_ANSWER = 10.0
_BITS: dict[str, int] = {
    "RunPodSandbox": nri.RUN_POD_SANDBOX,
    "StopPodSandbox": nri.STOP_POD_SANDBOX,
    "RemovePodSandbox": nri.REMOVE_POD_SANDBOX,
    "UpdatePodSandbox": nri.UPDATE_POD_SANDBOX,
    "PostUpdatePodSandbox": nri.POST_UPDATE_POD_SANDBOX,
    "CreateContainer": nri.CREATE_CONTAINER,
    "PostCreateContainer": nri.POST_CREATE_CONTAINER,
    "StartContainer": nri.START_CONTAINER,
    "PostStartContainer": nri.POST_START_CONTAINER,
    "UpdateContainer": nri.UPDATE_CONTAINER,
    "PostUpdateContainer": nri.POST_UPDATE_CONTAINER,
    "StopContainer": nri.STOP_CONTAINER,
    "RemoveContainer": nri.REMOVE_CONTAINER,
    "ValidateContainerAdjustment": nri.VALIDATE_CONTAINER_ADJUSTMENT,
}


class Refusal(Unavailable):
    """A plugin's own error, in its words."""


class Plugin:
    """One connection; `launched` when we started the plugin, whose names are then its file's."""

    def __init__(
        self,
        server: NriServer,
        reader: asyncio.StreamReader,
        writer: asyncio.StreamWriter,
        launched: Launchable | None = None,
    ) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer
        self._decoder = ttrpc.Decoder()
        self._calls: dict[int, asyncio.Future[bytes]] = {}
        self._stream = -1
        self._registered: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._tasks: set[asyncio.Task[None]] = set()
        self._launched = launched
        self.name = launched.name if launched else "?"
        self.index = launched.place if launched else ""
        self._events = 0
        self.introduced = asyncio.Event()  # it takes part, or never will

    @property
    def title(self) -> str:
        """Index and name, as plugins are sorted and told apart."""
        return f"{self.index}-{self.name}"

    def wants(self, method: str) -> bool:
        """Did it subscribe to that?"""
        return bool(self._events & 1 << _BITS[method] - 1)

    async def serve(self) -> None:
        """Read until the plugin goes."""
        introduction = asyncio.create_task(self._introduce())
        self._tasks.add(introduction)
        try:
            while data := await self._reader.read(65536):
                for message in self._decoder.feed(data):
                    self._take(message)
        except (ConnectionError, InvalidArgument) as error:
            log.warning("NRI plugin %s: %s", self.title, error)
        finally:
            self.close()

    def close(self) -> None:
        """End the connection; whoever waits for the plugin waits no more."""
        self.introduced.set()
        self._server.forget(self)
        waiting: list[asyncio.Future[Any]] = [*self._calls.values(), self._registered]
        for future in waiting:
            if not future.done():
                future.set_exception(Unavailable(f"NRI plugin {self.title} has gone"))
                future.exception()
        for task in tuple(self._tasks):
            if task is not asyncio.current_task():
                task.cancel()
        self._writer.close()

    def _take(self, message: ttrpc.Message) -> None:
        if message.connection == ttrpc.PLUGIN and message.kind == ttrpc.RESPONSE:
            waiting = self._calls.pop(message.stream, None)
            if waiting is not None and not waiting.done():
                waiting.set_result(message.data)
        elif message.connection == ttrpc.RUNTIME and message.kind == ttrpc.REQUEST:
            task = asyncio.create_task(self._answer(message))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    def _send(self, message: ttrpc.Message) -> None:
        self._writer.write(ttrpc.encode(message))

    # what it asks

    async def _answer(self, message: ttrpc.Message) -> None:
        response = nri.TtrpcResponse()
        try:
            request = nri.TtrpcRequest.FromString(message.data)
            reply = await self._serve_call(request)
            response.payload = reply.SerializeToString()
        except (NagayaError, DecodeError) as error:
            response.status.code = 3 if isinstance(error, InvalidArgument) else 2  # gRPC's numbers
            response.status.message = str(error)
        self._send(
            ttrpc.Message(message.connection, message.stream, ttrpc.RESPONSE, response.SerializeToString())
        )

    async def _serve_call(self, request: nri.TtrpcRequest) -> Message:
        if request.service == _RUNTIME and request.method == "RegisterPlugin":
            return self._register(nri.RegisterPluginRequest.FromString(request.payload))
        if request.service == _RUNTIME and request.method == "UpdateContainers":
            asked = nri.UpdateContainersRequest.FromString(request.payload)
            failed = await self._server.change(self, asked.update, asked.evict)
            return nri.UpdateContainersResponse(failed=failed)
        if request.method == "Log":
            log.info("NRI plugin %s: %s", self.title, nri.LogRequest.FromString(request.payload).msg[:1000])
            return nri.Empty()
        raise InvalidArgument(f"{request.service}/{request.method} is not served")

    def _register(self, request: nri.RegisterPluginRequest) -> nri.Empty:
        if self._registered.done():
            raise InvalidArgument("registered already")
        index = request.plugin_idx
        if self._launched is None:
            if len(index) != 2 or not index.isdigit() or not request.plugin_name:
                raise InvalidArgument(f"plugin index {index!r} is not two digits, or there is no name")
            self.name, self.index = request.plugin_name, index
        self._registered.set_result(None)
        return nri.Empty()

    async def _introduce(self) -> None:
        try:
            async with asyncio.timeout(_REGISTER):
                await self._registered
            configured = await self.call(
                "Configure",
                nri.ConfigureRequest(
                    config=self._launched.config if self._launched else "",
                    runtime_name="nagaya",
                    runtime_version=nagaya.__version__,
                    registration_timeout=int(_REGISTER * 1000),
                    request_timeout=int(_ANSWER * 1000),
                    NRI_version=_VERSION,
                ),
                nri.ConfigureResponse,
            )
            self._events = configured.events or (1 << nri.LAST - 1) - 1
            await self._server.admit(self)
            self.introduced.set()
        except (NagayaError, TimeoutError) as error:
            log.warning("NRI plugin %s is not taken: %s", self.title, error or "it does not register")
            self.close()

    # what it is asked

    async def call(self, method: str, request: Message, kind: type[M], timeout: float = _ANSWER) -> M:
        """One call. Raises Refusal for the plugin's own error, Unavailable when it does not answer."""
        self._stream += 2
        stream = self._stream
        waiting: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._calls[stream] = waiting
        asked = nri.TtrpcRequest(
            service=_PLUGIN,
            method=method,
            payload=request.SerializeToString(),
            timeout_nano=int(timeout * 1e9),
        )
        try:
            self._send(ttrpc.Message(ttrpc.PLUGIN, stream, ttrpc.REQUEST, asked.SerializeToString()))
            async with asyncio.timeout(timeout):
                response = nri.TtrpcResponse.FromString(await waiting)
            if response.status.code:
                raise Refusal(
                    f"NRI plugin {self.title}, {method}: {response.status.message}", subject=self.name
                )
            return kind.FromString(response.payload)
        except (TimeoutError, DecodeError):
            raise Unavailable(
                f"NRI plugin {self.title} does not answer {method}", subject=self.name
            ) from None
        finally:
            self._calls.pop(stream, None)


class NriServer:
    """All plugins; implements `engine.pods_plugins.Plugins`. Lives on the event loop."""

    def __init__(self, engine: Engine, path: str) -> None:
        self._engine = engine
        self._world = engine.world
        self._path = path
        self._plugins: list[Plugin] = []
        self._open: set[Plugin] = set()
        self._processes: list[asyncio.Task[None]] = []
        self._server: asyncio.Server | None = None
        # containers are made while no plugin learns what there is, so that none is missed
        self._making = 0
        self._changed = asyncio.Condition()
        self._admitting = asyncio.Lock()

    async def start(self, group: str, launchable: Sequence[Launchable]) -> None:
        """Start what is to be started and wait until it takes part, then listen. Raises FailedPrecondition
        when something else does."""
        sock = listen_unix(self._path, group)
        self._world.plugins = self
        started = [await self._launch(plugin) for plugin in launchable]
        await asyncio.gather(*(plugin.introduced.wait() for plugin in started if plugin is not None))
        self._server = await asyncio.start_unix_server(self._connected, sock=sock)

    async def _launch(self, plugin: Launchable) -> Plugin | None:
        try:
            process, reader, writer = await launching.launch(plugin)
        except OSError as error:
            log.warning("NRI plugin %s does not start: %s", plugin.path, error.strerror)
            return None
        made = Plugin(self, reader, writer, plugin)
        self._open.add(made)
        self._processes.append(self._world.task(self._run(made, process), f"NRI plugin {made.title}"))
        return made

    async def _run(self, plugin: Plugin, process: asyncio.subprocess.Process) -> None:
        try:
            await plugin.serve()
        finally:
            await launching.end(process)

    async def close(self) -> None:
        """End all connections."""
        self._world.plugins = pods_plugins.NoPlugins()
        if self._server is not None:
            self._server.close()
        with suppress(FileNotFoundError):
            os.unlink(self._path)
        for plugin in tuple(self._open):
            plugin.close()
        if self._processes:
            await asyncio.wait(self._processes)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        plugin = Plugin(self, reader, writer)
        self._open.add(plugin)
        await plugin.serve()

    def forget(self, plugin: Plugin) -> None:
        """It has gone."""
        self._open.discard(plugin)
        if plugin in self._plugins:
            self._plugins.remove(plugin)
            log.info("NRI plugin %s has gone", plugin.title)

    async def admit(self, plugin: Plugin) -> None:
        """Tell a plugin what there is, and ask it from now on. Raises Unavailable."""
        pods = self._engine.pods
        async with self._admitting:
            async with self._changed:
                await self._changed.wait_for(lambda: self._making == 0)
            request = nri.SynchronizeRequest(
                pods=[translate.pod_message(self._world, pod) for pod in pods.pods() if pod.ready],
                containers=[
                    translate.container_message(self._world, pods.pod(c.config.pod.pod_id), c)
                    for c in pods.containers()
                    if c.config.pod is not None and c.state in ("created", "running", "paused")
                ],
            )
            answer = await plugin.call("Synchronize", request, nri.SynchronizeResponse, _SYNCHRONIZE)
            self._plugins.append(plugin)
            self._plugins.sort(key=lambda p: p.title)
        log.info("NRI plugin %s takes part", plugin.title)
        await self.change(plugin, answer.update, ())

    @asynccontextmanager
    async def steady(self) -> AsyncIterator[None]:
        """While something is made that plugins must be asked about, none is admitted."""
        async with self._admitting:
            self._making += 1
        try:
            yield
        finally:
            async with self._changed:
                self._making -= 1
                self._changed.notify_all()

    async def change(self, plugin: Plugin, updates: Any, evictions: Any) -> list[nri.ContainerUpdate]:
        """Carry out what a plugin wants of other containers; what failed and was not to be ignored."""
        failed = []
        for update in updates:
            try:
                limits = pods_plugins.limits_of(translate.plain(update.linux.resources))
                await self._engine.pods.update(update.container_id, limits, ask=False)
            except NagayaError as error:
                log.warning("NRI plugin %s: update of %s: %s", plugin.title, update.container_id[:12], error)
                if not update.ignore_failure:
                    failed.append(update)
        for eviction in evictions:
            log.warning(
                "NRI plugin %s: container %s goes: %s",
                plugin.title,
                eviction.container_id[:12],
                eviction.reason,
            )
            self._world.task(self._engine.pods.stop(eviction.container_id, 0), "eviction")
        return failed

    # Plugins

    async def _each(self, method: str, request: Message, kind: type[M]) -> AsyncIterator[tuple[Plugin, M]]:
        """Ask those that want it, in their order. One that does not answer is left behind; one that
        refuses raises."""
        for plugin in tuple(self._plugins):
            if not plugin.wants(method):
                continue
            try:
                answer = await plugin.call(method, request, kind)
            except Refusal:
                raise
            except NagayaError as error:
                log.warning("%s: it is left behind", error)
                plugin.close()
                continue
            yield plugin, answer

    async def pod(self, event: PodEvent, pod: Pod) -> None:
        """See `Plugins`."""
        message = translate.pod_message(self._world, pod)
        request, response = getattr(nri, f"{event}Request"), getattr(nri, f"{event}Response")
        try:
            async for _ in self._each(event, request(pod=message), response):
                pass
        except Refusal as refusal:
            if event == "RunPodSandbox":
                raise
            log.warning("%s", refusal)  # what ends, ends

    async def update_pod(
        self, pod: Pod, overhead: LinuxResources | None, resources: LinuxResources | None
    ) -> None:
        """See `Plugins`."""
        request = nri.UpdatePodSandboxRequest(pod=translate.pod_message(self._world, pod))
        for limits, message in (
            (overhead, request.overhead_linux_resources),
            (resources, request.linux_resources),
        ):
            if limits is not None:
                message.CopyFrom(translate.resources(limits))
        async for _ in self._each("UpdatePodSandbox", request, nri.UpdatePodSandboxResponse):
            pass

    async def container(self, event: ContainerEvent, pod: Pod, container: Container) -> None:
        """See `Plugins`."""
        request, response = getattr(nri, f"{event}Request"), getattr(nri, f"{event}Response")
        asked = request(
            pod=translate.pod_message(self._world, pod),
            container=translate.container_message(self._world, pod, container),
        )
        try:
            async for plugin, answer in self._each(event, asked, response):
                if event == "StopContainer":
                    await self.change(plugin, answer.update, ())
        except Refusal as refusal:
            if event == "StartContainer":
                raise
            log.warning("%s", refusal)

    async def create(self, pod: Pod, container: Container) -> Adjustment:
        """See `Plugins`."""
        request = nri.CreateContainerRequest(
            pod=translate.pod_message(self._world, pod),
            container=translate.container_message(self._world, pod, container),
        )
        merged: Adjustment = {}
        whole = nri.ContainerAdjustment()
        owners: dict[str, str] = {}
        async for plugin, answer in self._each("CreateContainer", request, nri.CreateContainerResponse):
            adjustment = translate.plain(answer.adjust)
            pods_plugins.check(adjustment)
            if taken := pods_plugins.merge(merged, adjustment, owners, plugin.title):
                raise FailedPrecondition(
                    f"NRI plugin {plugin.title} wants to set {taken}", subject=plugin.name
                )
            whole.MergeFrom(answer.adjust)
            await self.change(plugin, answer.update, answer.evict)
        if merged:
            await self._validate(request, whole)
        return merged

    async def _validate(self, request: nri.CreateContainerRequest, whole: nri.ContainerAdjustment) -> None:
        plugins = [nri.PluginInstance(name=p.name, index=p.index) for p in self._plugins]
        asked = nri.ValidateContainerAdjustmentRequest(
            pod=request.pod, container=request.container, adjust=whole, plugins=plugins
        )
        kind = nri.ValidateContainerAdjustmentResponse
        async for plugin, answer in self._each("ValidateContainerAdjustment", asked, kind):
            if answer.reject:
                raise FailedPrecondition(
                    f"NRI plugin {plugin.title} rejects the adjustments: {answer.reason}", subject=plugin.name
                )

    async def update(self, pod: Pod, container: Container, limits: LinuxResources) -> LinuxResources:
        """See `Plugins`."""
        request = nri.UpdateContainerRequest(
            pod=translate.pod_message(self._world, pod),
            container=translate.container_message(self._world, pod, container),
            linux_resources=translate.resources(limits),
        )
        async for plugin, answer in self._each("UpdateContainer", request, nri.UpdateContainerResponse):
            for update in answer.update:
                if update.container_id == container.id:
                    own = pods_plugins.limits_of(translate.plain(update.linux.resources))
                    limits = pods_plugins.amended(limits, own)
            others = [u for u in answer.update if u.container_id != container.id]
            await self.change(plugin, others, answer.evict)
        return limits


async def start_server(
    engine: Engine, path: str, *, group: str, plugins: str, configurations: str
) -> NriServer:
    """Start the plugins of a directory, and listen for others at `path`. Raises FailedPrecondition,
    InvalidArgument."""
    server = NriServer(engine, path)
    await server.start(group, await engine.world.job(launching.find, plugins, configurations))
    return server
