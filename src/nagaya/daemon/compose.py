"""The composition root: makes every room from the configuration, in order, and takes them down again."""

from __future__ import annotations

import asyncio
import logging
import os
import resource
import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from nagaya.api.docker.server import start_server
from nagaya.daemon import locks
from nagaya.daemon.config import Config
from nagaya.engine import apparmor
from nagaya.engine.catalog import LedgerCatalog
from nagaya.engine.engine import Engine
from nagaya.engine.ledger import Ledger
from nagaya.engine.reserve import LEAST, Reserve
from nagaya.engine.supervisor import Supervisor
from nagaya.engine.world import World
from nagaya.errors import KernelError, ResourceExhausted
from nagaya.image.store import ImageStore

if TYPE_CHECKING:
    from nagaya.api.cri.server import CriServer
    from nagaya.api.nri.server import NriServer

log = logging.getLogger(__name__)

_GRACE = 5.0  # seconds that requests under way get at the end


def make_directories(config: Config) -> None:
    """The directories of root and run, none of them readable by others (CVE-2021-41103)."""
    # 0711: a user in the socket's group must reach it; what lies inside has its own modes
    wanted = [(config.run, 0o711), (config.root, 0o710)]
    wanted += [(f"{config.run}/{name}", 0o700) for name in ("runtime", "bundles", "ns")]
    wanted += [(f"{config.run}/pods", 0o711)]
    wanted += [(f"{config.root}/{name}", 0o710) for name in ("containers", "snapshots", "content")]
    wanted += [(f"{config.root}/volumes", 0o711)]
    for path, mode in wanted:
        try:
            os.makedirs(path, mode=0o755, exist_ok=True)
            os.chmod(path, mode)
        except OSError as error:
            raise KernelError(
                os.strerror(error.errno or 0).lower(),
                subject=path,
                step=f"make directory {path}",
                errno=error.errno or 0,
            ) from None


async def open_engine(config: Config) -> Engine:
    """An engine that has recovered; `close_engine` is its inverse. The locks are the caller's."""
    ledger = _open_ledger(config.root)
    supervisor = Supervisor(config.run, root=config.root)
    try:
        images = ImageStore(config.root, LedgerCatalog(ledger), config.registry_config())
        await asyncio.get_running_loop().run_in_executor(None, images.recover)
        await supervisor.start()
        # only after a keeper was started: containers get the limit that nagayad was started with
        raise_file_limit()
        world = World(config.settings(), ledger, images, config.network(), supervisor)
        world.apparmor = await asyncio.to_thread(apparmor.load_default)
        return await Engine.create(world)
    except BaseException:
        await supervisor.close()
        ledger.close()
        raise


def _open_ledger(root: str) -> Ledger:
    """The ledger, also on a full disk: with the room that was kept for that. Raises what it raises."""
    reserve = Reserve(root)
    try:
        ledger = Ledger(f"{root}/ledger.db")
    except ResourceExhausted:
        if not reserve.spend():
            raise
        log.warning("the disk of %s is full: only what frees room on it will work", root)
        return Ledger(f"{root}/ledger.db", scarce=True)
    reserve.fill()
    return ledger


async def close_engine(engine: Engine) -> None:
    """Leave the containers running, and everything else in order."""
    await engine.close()
    await asyncio.to_thread(engine.world.network.drain)  # interfaces of containers that are just gone
    await engine.world.supervisor.close()
    if engine.world.ledger.close() >= LEAST:  # what its log had is for the next one
        Reserve(engine.world.settings.root).fill(plenty=1)


async def _start_cri(engine: Engine, config: Config) -> CriServer | None:
    """The server for kubelets, when there is to be one."""
    if not config.cri_socket:
        return None
    # only now: gRPC and protobuf take memory, which nobody pays for who has no kubelet
    from nagaya.api.cri.server import start_server as start_cri_server

    server = await start_cri_server(engine, config.cri_socket, group=config.group)
    log.info("serving the CRI at %s", config.cri_socket)
    return server


async def _start_nri(engine: Engine, config: Config) -> NriServer | None:
    """The server for plugins, when there are to be some."""
    if not config.nri_socket:
        return None
    from nagaya.api.nri.server import start_server as start_nri_server

    server = await start_nri_server(
        engine,
        config.nri_socket,
        group=config.group,
        plugins=config.nri_plugin_dir,
        configurations=config.nri_plugin_conf_dir,
    )
    log.info("serving the NRI at %s", config.nri_socket)
    return server


def raise_file_limit() -> None:
    """Some descriptors are held per container: use all that we may."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


async def serve(config: Config) -> None:
    """Be the daemon until SIGTERM or SIGINT. Raises what makes that impossible."""
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, ended.set)
    loop.add_signal_handler(signal.SIGHUP, lambda: None)
    make_directories(config)
    held = [locks.take(f"{config.root}/nagayad.lock"), locks.take(f"{config.run}/nagayad.lock")]
    try:
        engine = await open_engine(config)
        try:
            server = await start_server(engine, config.socket, group=config.group)
            plugins = await _start_nri(engine, config)
            kubelets = await _start_cri(engine, config)
            locks.write_pid(config.pid_path)
            log.info("serving the Docker API at %s", config.socket)
            await ended.wait()
            log.info("ending; containers go on")
            for other in (kubelets, plugins):
                if other is not None:
                    await other.close()
            server.close()
            with suppress(TimeoutError):
                await asyncio.wait_for(server.wait_closed(), _GRACE)
        finally:
            await close_engine(engine)
    finally:
        locks.remove_pid(config.pid_path)
        for fd in held:
            os.close(fd)
