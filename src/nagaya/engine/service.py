"""The engine's face: what the APIs may ask. `engine.engine.Engine` is the implementation.

`ref` is an id, an unambiguous id prefix, or a name, as Docker resolves them. All methods raise the
classes of `nagaya.errors`; messages are dockerd's where dockerd has one ("No such container: x").
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from typing import Any, Literal, Protocol

from nagaya.engine.changes import Change
from nagaya.engine.copying import PathStat
from nagaya.engine.making import Edit
from nagaya.engine.model import (
    Attachment,
    AttachRequest,
    Container,
    Created,
    CreateRequest,
    Event,
    Exec,
    ExecConfig,
    Finding,
    ImageSummary,
    LogLine,
    Network,
    NetworkCreation,
    PullProgress,
    RegistryAuth,
    Resources,
    RestartPolicy,
    Step,
    VolumeSummary,
    WaitResult,
)
from nagaya.engine.prune import Pruned
from nagaya.engine.workshop import Workshop

WaitCondition = Literal["not-running", "next-exit", "removed"]


class EngineService(Protocol):
    """Containers, exec sessions, images, events and facts about the daemon."""

    # containers
    async def create_container(self, request: CreateRequest) -> Created:
        """NotFound("No such image: x:tag") when the image is not here: the client pulls it."""
        ...

    async def start_container(self, ref: str) -> None:
        """NotModified when it runs. CommandNotFound/CommandNotExecutable leave exit code 127/126."""
        ...

    async def stop_container(self, ref: str, timeout: int | None = None, signal: str = "") -> None: ...
    async def restart_container(self, ref: str, timeout: int | None = None, signal: str = "") -> None: ...
    async def kill_container(self, ref: str, signal: str = "KILL") -> None: ...
    async def pause_container(self, ref: str) -> None: ...
    async def unpause_container(self, ref: str) -> None: ...
    async def rename_container(self, ref: str, name: str) -> None: ...
    async def update_container(
        self, ref: str, resources: Resources, restart: RestartPolicy | None
    ) -> Sequence[str]: ...
    async def remove_container(self, ref: str, *, force: bool = False, volumes: bool = False) -> None: ...
    def begin_wait(self, ref: str, condition: WaitCondition) -> Callable[[], AsyncIterator[WaitResult]]:
        """Register the wait now (raises NotFound now), so that the 200 header may be sent at once;
        the returned callable yields exactly one result when the condition holds."""
        ...

    async def attach_container(self, ref: str, request: AttachRequest, fd: int) -> None:
        """Hand over the client's socket (the engine owns fd from here). Returns once it is wired:
        everything the container writes from then on reaches the client."""
        ...

    async def resize_container(self, ref: str, height: int, width: int) -> None: ...
    def logs(
        self,
        ref: str,
        *,
        stdout: bool = True,
        stderr: bool = True,
        since: int = 0,
        until: int = 0,
        tail: int | None = None,
        follow: bool = False,
    ) -> AsyncIterator[Sequence[LogLine]]:
        """Lines as they were written, as many at once as were read at once."""
        ...

    async def top(self, ref: str, ps_args: str) -> tuple[list[str], list[list[str]]]: ...
    async def stats(self, ref: str) -> Mapping[str, object]:
        """One reading of the container's cgroup and interfaces, in the shape of `events --stats`' data."""
        ...

    def inspect_container(self, ref: str) -> Container: ...
    def list_containers(self) -> Sequence[Container]:
        """A snapshot that takes no lock (field notes, complaint 2)."""
        ...

    async def look_at(self, ref: str, path: str) -> PathStat:
        """What is at a path of the container. Raises NotFound, InvalidArgument."""
        ...

    async def read_archive(self, ref: str, path: str) -> tuple[PathStat, AsyncIterator[bytes]]:
        """What is at a path, and its tar stream, to be closed by `aclose` whatever was read of it."""
        ...

    async def write_archive(
        self, ref: str, path: str, body: AsyncIterator[bytes], *, strict: bool, as_user: bool
    ) -> None:
        """Unpack a tar stream into a directory of the container; see `engine.archives.write`."""
        ...

    async def export_container(self, ref: str) -> AsyncIterator[bytes]:
        """The tar stream of its root, without mounts; to be closed by `aclose`."""
        ...

    async def container_changes(self, ref: str) -> Sequence[Change]:
        """What it has changed in its root."""
        ...

    async def prune_containers(self, wanted: Callable[[Container], bool]) -> Pruned:
        """Remove those that do not run and are wanted. Raises FailedPrecondition while it is being done."""
        ...

    async def container_size(self, ref: str) -> tuple[int, int]:
        """Bytes that the container has written, and those with its image's."""
        ...

    def container_steps(self, ref: str) -> Sequence[Step]:
        """How the container came to life, for `explain`."""
        ...

    async def remove_link(self, name: str) -> None:
        """Of "CONTAINER/ALIAS". Raises NotFound."""
        ...

    # exec
    async def create_exec(self, ref: str, config: ExecConfig) -> str: ...
    async def start_exec(
        self,
        exec_id: str,
        fd: int | None,
        *,
        preface: bytes = b"",
        console: tuple[int, int] | None = None,
        frames: bool = True,
    ) -> None:
        """fd: the client's socket (owned by the engine), None for detached. frames: output comes in frames
        that name its stream, also a terminal's."""
        ...

    def inspect_exec(self, exec_id: str) -> Exec: ...
    async def settled_exec(self, exec_id: str) -> Exec:
        """The same, once what has ended for its clients has ended here, too."""
        ...

    async def resize_exec(self, exec_id: str, height: int, width: int) -> None: ...

    # images
    def pull_image(
        self, reference: str, platform: str, auth: RegistryAuth | None, *, all_tags: bool = False
    ) -> AsyncIterator[PullProgress]: ...
    async def try_login(self, address: str, auth: RegistryAuth) -> None:
        """Ask a registry whether it takes these credentials. Raises Unauthenticated, Unavailable."""
        ...

    async def describe_image(self, reference: str, auth: RegistryAuth | None) -> Mapping[str, Any]:
        """What a registry has under a name: the body of GET /distribution/{name}/json."""
        ...

    async def search_images(
        self, term: str, limit: int, auth: RegistryAuth | None
    ) -> Sequence[Mapping[str, Any]]:
        """Repositories of a registry for "HOST/WORD" or "WORD": the elements of GET /images/search,
        unfiltered. Raises NotFound for a registry that cannot be searched."""
        ...

    def push_image(self, reference: str, auth: RegistryAuth | None) -> AsyncIterator[PullProgress]:
        """Push a tag, or without one all tags of the repository."""
        ...

    async def commit_container(
        self,
        ref: str,
        name: str,
        edit: Edit,
        config: Mapping[str, Any] | None,
        *,
        author: str = "",
        comment: str = "",
        pause: bool = True,
    ) -> str:
        """The id of an image of the container. config: as image-spec's `config`, None for its own; edit:
        what is made of it. Raises NotFound, InvalidArgument, FailedPrecondition."""
        ...

    async def import_image(
        self, body: AsyncIterator[bytes], name: str, edit: Edit, message: str, platform: str
    ) -> str:
        """The id of an image of one layer, of an archive of files. Raises InvalidArgument."""
        ...

    def import_url(
        self, url: str, name: str, edit: Edit, message: str, platform: str
    ) -> AsyncIterator[PullProgress]:
        """The same of what is at a URL; the last report has the id for its status."""
        ...

    def load_images(self, body: AsyncIterator[bytes]) -> AsyncIterator[PullProgress]:
        """Take in an archive as `docker save` makes them. Closing the iterator ends it."""
        ...

    def save_images(self, names: Sequence[str]) -> AsyncIterator[bytes]:
        """The tar stream of these images, to be closed by `aclose`; its first piece raises NotFound."""
        ...

    async def list_images(self) -> Sequence[ImageSummary]: ...
    async def inspect_image(self, ref: str) -> ImageSummary: ...
    async def image_history(self, ref: str) -> Sequence[Mapping[str, object]]: ...
    async def tag_image(self, ref: str, target: str) -> None: ...
    async def remove_image(self, ref: str, *, force: bool = False) -> Sequence[Mapping[str, str]]:
        """[{"Untagged": "x:tag"}, {"Deleted": "sha256:..."}] in order."""
        ...

    async def prune_images(
        self, wanted: Callable[[ImageSummary], bool], *, dangling: bool
    ) -> tuple[Sequence[Mapping[str, str]], int]:
        """Remove the wanted images that no container uses (dangling: and that have no tag): lines as
        `remove_image` answers, and the bytes of files that went."""
        ...

    async def image_layers(self) -> Sequence[Mapping[str, Any]]:
        """All images with their layers: the body of GET /nagaya/images/layers."""
        ...

    async def image_usage(self) -> tuple[int, Mapping[str, int]]:
        """(bytes of all unpacked layers, each once; by image id: those that others have, too)."""
        ...

    @property
    def workshop(self) -> Workshop:
        """What the build room makes images with."""
        ...

    # the daemon
    def events(self, since: int = 0, until: int = 0) -> AsyncIterator[Event]: ...
    async def check(self, *, repair: bool = False) -> Sequence[Finding]:
        """Where ledger and host differ, after a repair what was found before it."""
        ...

    def info(self) -> Mapping[str, object]:
        """Facts for /info: root, driver, cgroup driver and version, runtimes, counts, security options."""
        ...

    async def cdi_devices(self) -> Sequence[str]:
        """The names of the devices that CDI specs have."""
        ...

    def networks(self) -> Sequence[Mapping[str, object]]:
        """The networks that exist, shaped as Docker's Network resource; "Created" in nanoseconds."""
        ...

    async def create_volume(
        self, name: str, *, driver: str = "", labels: dict[str, str], options: dict[str, str]
    ) -> VolumeSummary:
        """The volume of that name, made when there is none; name "" makes an anonymous one."""
        ...

    async def remove_volume(self, name: str, *, force: bool = False) -> None:
        """FailedPrecondition while a container has it; NotFound unless forced."""
        ...

    async def prune_volumes(self, chosen: Callable[[VolumeSummary], bool]) -> tuple[Sequence[str], int]:
        """Remove the unused ones among the chosen: (their names, bytes that they had)."""
        ...

    async def create_network(self, asked: NetworkCreation) -> Network: ...
    async def remove_network(self, ref: str) -> None: ...
    async def prune_networks(self, wanted: Callable[[Network], bool]) -> list[str]:
        """Remove the wanted ones that no container belongs to; their names."""
        ...

    async def connect_network(self, ref: str, container: str, attachment: Attachment) -> None: ...
    async def disconnect_network(self, ref: str, container: str, *, force: bool = False) -> None: ...

    def volumes(self) -> Sequence[VolumeSummary]:
        """The volumes that exist, by name."""
        ...

    async def volume_size(self, name: str) -> int:
        """Bytes of a volume's files; 0 when it is gone."""
        ...
