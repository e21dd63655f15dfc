"""nagaya-vmm: one microVM behind Firecracker's REST API."""

from __future__ import annotations

import argparse
import errno
import json
import os
import select
import signal
import socket
import sys
import time

import msgspec

from nagaya import __version__
from nagaya.api.firecracker import arguments, jailer, models, serde, snapshots
from nagaya.api.firecracker.arguments import ArgumentsError
from nagaya.api.firecracker.controller import VERSION, Controller
from nagaya.api.firecracker.faults import Fault, os_words
from nagaya.api.firecracker.guest import Host, QemuMaker
from nagaya.api.firecracker.logs import Log, Metrics
from nagaya.api.firecracker.mmds import Mmds
from nagaya.api.firecracker.requests import Action
from nagaya.api.firecracker.resources import Resources
from nagaya.api.firecracker.server import Loop, Server, listen_unix
from nagaya.errors import KernelError, NagayaError
from nagaya.linux import tap

SNAPSHOT_VERSION = "1.0.0"
_GENERIC, _BAD_CONFIGURATION, _ARGUMENTS = 1, 152, 153  # Firecracker's exit codes
_METRICS_PERIOD = 60.0
_IFNAMSIZ = 16


def main(argv: list[str]) -> int:
    """Run the command line; returns the exit code."""
    if argv[:1] != ["jailer"]:
        return _main(argv, None)
    try:
        inner, jail = jailer.enter(argv[1:])
    except SystemExit as ending:
        return int(ending.code or 0)
    except (jailer.JailError, NagayaError, OSError) as error:
        print(f"Jailer error: {jailer.complain(error)}", file=sys.stderr)
        return _GENERIC
    return _main(inner, jail)


def _main(argv: list[str], jail: jailer.Jail | None) -> int:
    try:
        options = arguments.parse(argv)
    except ArgumentsError as error:
        print(f"Error: {error}", file=sys.stderr)
        return _ARGUMENTS
    except SystemExit as ending:
        return int(ending.code or 0)
    if options.version:
        print(f"Firecracker v{VERSION}\n\nnagaya-vmm {__version__}")
        return 0
    if options.snapshot_version:
        print(f"v{SNAPSHOT_VERSION}")
        return 0
    if options.describe_snapshot is not None:
        return _describe(options.describe_snapshot)
    if wrong := arguments.check_id(options.id):
        print(f"Error: Invalid instance ID: {wrong}", file=sys.stderr)
        return _GENERIC
    return _Process(options, jail).run()


def _describe(path: str) -> int:
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        print(f"Error: Unable to open snapshot state file: {os_words(error)}", file=sys.stderr)
        return _GENERIC
    try:
        snapshots.read_beginning(fd)
    except NagayaError as error:
        print(f"Error: Invalid data format version of snapshot file: {error}", file=sys.stderr)
        return _GENERIC
    finally:
        os.close(fd)
    print(f"v{SNAPSHOT_VERSION}")
    return 0


def open_tap(name: str) -> int:
    """A descriptor of that tap. Raises OSError, ValueError (no name of an interface)."""
    if not name or len(os.fsencode(name)) >= _IFNAMSIZ or "/" in name:
        raise ValueError(name)
    try:
        return tap.open_tap(name)
    except KernelError as error:
        raise OSError(error.errno, error.message) from None


class _Failed(Exception):
    """The process cannot go on: str() says why; `code` is its exit code."""

    def __init__(self, message: str, code: int = _GENERIC) -> None:
        super().__init__(message)
        self.code = code


class _Process:
    def __init__(self, options: argparse.Namespace, jail: jailer.Jail | None) -> None:
        self._options = options
        self._began = time.monotonic_ns()
        self._log = Log(options.id)
        self._metrics = Metrics(options.id)
        self._loop = Loop()
        self._resources = Resources(open_tap)
        limit = options.mmds_size_limit
        self._mmds = Mmds(
            options.http_api_max_payload_size if limit is None else limit,
            count=lambda name: self._metrics.count("mmds", name),
        )
        self._maker = QemuMaker(
            self._loop,
            self._mmds,
            self._log,
            self._metrics,
            self._guest_ended,
            jail.host if jail else Host(),
            jailed=jail is not None,
        )
        self._controller = Controller(
            options.id,
            self._maker,
            self._resources,
            self._mmds,
            self._log,
            self._metrics,
            lambda code: self._loop.after(0, lambda: self._loop.stop(code)),
        )
        self._server: Server | None = None
        self._wake = socket.socketpair()

    def run(self) -> int:
        """Until the guest ends, or somebody ends us."""
        try:
            code = self._run()
        except _Failed as error:
            self._log.error(str(error))
            print(f"Error: {error}", file=sys.stderr)
            code = error.code
        finally:
            self._close()
        words = "successfully" if code == 0 else "with error"
        self._log.info(f"nagaya-vmm exiting {words}. exit_code={code}")
        return code

    def _run(self) -> int:
        self._configure_logs()
        self._log.info(f"Running nagaya-vmm, API v{VERSION}")
        self._catch_signals()
        config = self._read("config-file", self._options.config_file)
        if (metadata := self._read("metadata", self._options.metadata)) is not None:
            try:
                self._mmds.put(serde.decode_any(metadata))
            except (serde.SerdeError, Fault) as error:
                raise _Failed(f"MMDS error: metadata provided not valid json: {error}") from None
        if not self._options.no_api:
            self._listen(self._options.api_sock)
        if config is not None:
            self._start_from(config)
        if (started := self._options.start_time_us) is not None:
            took = time.time_ns() // 1000 - started
            self._metrics.store("api_server", "process_startup_time_us", max(0, took))
        cpu = time.process_time_ns() // 1000 + (self._options.parent_cpu_time_us or 0)
        self._metrics.store("api_server", "process_startup_time_cpu_us", cpu)
        self._loop.every(_METRICS_PERIOD, self._flush)
        code = self._loop.run()
        self._flush()
        return code

    def _configure_logs(self) -> None:
        level = self._options.level
        if level is not None and level.lower() not in models.LEVELS:
            words = "Possible values: [Error, Warning, Info, Debug]"
            raise _Failed(f"Invalid value for logger level: {level}.{words}", _BAD_CONFIGURATION)
        config = models.LoggerConfig(
            log_path=self._options.log_path,
            level=None if level is None else models.LEVELS[level.lower()],
            show_level=self._options.show_level or None,
            show_log_origin=self._options.show_log_origin or None,
            module=self._options.module,
        )
        try:
            self._log.configure(config)
            if self._options.metrics_path is not None:
                self._metrics.configure(models.MetricsConfig(metrics_path=self._options.metrics_path))
        except OSError as error:
            raise _Failed(f"Could not initialize logger: {os_words(error)}") from None
        except Fault as error:
            raise _Failed(f"Could not initialize metrics: {error}") from None

    def _catch_signals(self) -> None:
        ours, theirs = self._wake
        theirs.setblocking(False)
        ours.setblocking(False)
        signal.set_wakeup_fd(theirs.fileno(), warn_on_full_buffer=False)
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
            signal.signal(number, lambda *_: None)
        self._loop.watch(ours.fileno(), select.EPOLLIN, self._signalled)

    def _signalled(self, _: int) -> None:
        for number in self._wake[0].recv(64):
            if number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT):
                self._loop.stop(128 + number)

    def _read(self, name: str, path: str | None) -> bytes | None:
        if path is None:
            return None
        try:
            with open(path, "rb") as file:
                return file.read(1 << 24)
        except OSError as error:
            words = "configuration" if name == "config-file" else "mmds content"
            raise _Failed(f"Unable to open or read from the {words} file: {os_words(error)}") from None

    def _listen(self, path: str) -> None:
        try:
            listener = listen_unix(path)
        except OSError as error:
            if error.errno == errno.EADDRINUSE:
                words = "Check that it is not already used."
                raise _Failed(f"Failed to open the API socket at: {path}. {words}") from None
            # Python itself says, without a number, that a path is too long
            words = os_words(error) if error.errno else str(error)
            raise _Failed(f"Failed to bind and run the HTTP server: {path}: {words}") from None
        limit = self._options.http_api_max_payload_size
        self._server = Server(self._loop, listener, self._controller.answer, limit)
        self._log.info(f"Listening on API socket ({path!r}).")

    def _start_from(self, text: bytes) -> None:
        """Configure and start the machine, as the requests in this order would."""
        words = "Failed to build MicroVM from Json:"
        try:
            config = serde.decode(models.VmmConfig, text)
            for action in _actions(config):
                self._controller.act(action)
        except serde.SerdeError as error:
            why = f"Configuration for VMM from one single json failed: Invalid JSON: {error}"
            raise _Failed(f"{words} {why}", _BAD_CONFIGURATION) from None
        except Fault as error:
            raise _Failed(f"{words} {error}", _BAD_CONFIGURATION) from None
        self._log.info("Successfully started microvm that was configured from one single json")

    def _flush(self) -> None:
        try:
            self._metrics.flush()
        except OSError as error:
            self._log.error(f"Failed to write metrics: {os_words(error)}")

    def _guest_ended(self) -> None:
        code = self._maker.close()
        self._controller.ended()
        if code:
            self._log.error(f"QEMU ended with {code}")
        self._loop.stop(_GENERIC if code else 0)

    def _close(self) -> None:
        self._maker.close()
        if self._server:
            self._server.close()
            try:
                os.unlink(self._options.api_sock)
            except OSError:
                pass  # a jail's may not let us
        self._resources.close()
        signal.set_wakeup_fd(-1)
        for end in self._wake:
            end.close()
        self._loop.close()


def _actions(config: models.VmmConfig) -> list[Action]:
    """What a configuration file asks for, in the order in which Firecracker does it. Raises Fault."""
    found: list[tuple[str, object]] = [
        ("configure_logger", config.logger),
        ("configure_metrics", config.metrics),
    ]
    if config.machine_config:
        given = msgspec.structs.asdict(config.machine_config)
        found.append(("update_machine_config", models.MachineConfigUpdate(**given)))
    if config.cpu_config is not None:
        found.append(("set_cpu_config", _cpu_config(config.cpu_config)))
    found.append(("configure_boot_source", config.boot_source))
    found += [("insert_drive", drive) for drive in config.drives]
    found += [("insert_network_interface", card) for card in config.network_interfaces]
    found += [("set_vsock", config.vsock), ("set_balloon", config.balloon)]
    found += [("set_mmds_config", config.mmds_config), ("set_entropy", config.entropy)]
    found += [("insert_pmem", device) for device in config.pmem]
    found.append(("set_memory_hotplug", config.memory_hotplug))
    actions = [Action(name, argument) for name, argument in found if argument is not None]
    return [*actions, Action("start")]


def _cpu_config(given: object) -> models.CustomCpuTemplate:
    """A template, or the path of a file with one."""
    try:
        if isinstance(given, str):
            with open(given, "rb") as file:
                return serde.decode(models.CustomCpuTemplate, file.read(1 << 24))
        return serde.decode(models.CustomCpuTemplate, json.dumps(given).encode())
    except OSError as error:
        raise Fault(f"File operation error: {os_words(error)}") from None
