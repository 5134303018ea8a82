"""Import modules once in a server, and fork a child for each task; only the first task waits for imports.

The command is the process that uses `ForkServer`; the server is the process that runs `python -m
competition.fork_server`. The server only imports: it computes nothing, holds no lock, starts no thread itself, and
never initialises CUDA. A child has the same environment, working folder, output and session as a newly started process.
The parent of a child is the server, not the command. The server ends when the command ends, even if the command is
killed.

The server imports with the environment of its children. So each library reads the same variables as in a newly started
process. For example, OpenMP and OpenBLAS get the same number of threads. OpenBLAS may start threads when it is
imported, but it ends them before a fork, and starts them again when it needs them.
"""

# This module does not use `multiprocessing.forkserver`. Its children do not have their own environment, output and
# session, and import the command's main module again. Its server reaps a child before the command knows that the child
# has ended, so a signal may reach another process with the same id.

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

from competition.process import PARENT_VARIABLE

SWITCH = "MASKFOLD_FORKSERVER"  # environment variable; 0 starts a new process for each task
POLL_SECONDS = 0.5  # the server checks this often whether the command still runs
MAX_REQUEST = 200_000  # bytes
ARROW_ALLOCATOR = "JE_ARROW_MALLOC_CONF"  # pyarrow's allocator would start a thread at import
# The server blocks these signals, because it ends with its command. A signal to a child waits until the child unblocks
# them.
BLOCKED_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


# Used by the command


class ServerLost(Exception):
    """Report that the server has ended, so that it can neither start children nor report their exit status."""


class ForkedProcess:
    """Control a child of a server, like `subprocess.Popen` controls a process that it started.

    Args:
        server: the server that forked the child.
        pid: the child's process id.
    """

    def __init__(self, server: ForkServer, pid: int) -> None:
        self.pid, self._server = pid, server
        self.returncode: int | None = None
        self._descriptor = os.pidfd_open(pid)  # the server does not reap the child before `poll` asks for its status

    def poll(self) -> int | None:
        """Return the child's exit status, or None while the child runs.

        As in `subprocess`, the status is -n if signal n has ended the child.
        """
        return self.returncode if self._has_ended(0.0) else None

    def wait(self, timeout: float | None = None) -> int:
        """Wait until the child ends; return its exit status.

        Raises:
            subprocess.TimeoutExpired: the child still runs after `timeout` seconds.
        """
        if not self._has_ended(timeout):
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0.0)
        assert self.returncode is not None
        return self.returncode

    def terminate(self) -> None:
        """Send SIGTERM if the child still runs."""
        self._send(signal.SIGTERM)

    def kill(self) -> None:
        """Send SIGKILL if the child still runs."""
        self._send(signal.SIGKILL)

    def _send(self, number: signal.Signals) -> None:
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._descriptor, number)

    def _has_ended(self, timeout: float | None) -> bool:
        if self.returncode is None and _is_readable(self._descriptor, timeout):
            self.returncode = self._server.take_status(self.pid)
            os.close(self._descriptor)
        return self.returncode is not None


class ForkServer:
    """Start a server process that imports modules once, and fork children from it.

    The first child waits until the server has imported the modules; later children start at once.

    Args:
        modules: names of the modules to import. If an import fails, the children import the module again and report the
            error.
        environment: environment variables of the server and its children.
    """

    def __init__(self, modules: Sequence[str], environment: Mapping[str, str]) -> None:
        self.environment = dict(environment)
        self._lock, self._children = threading.Lock(), 0
        self._channel, self._process = _launch(modules, self.environment)

    @property
    def is_lost(self) -> bool:
        """Whether the server has ended."""
        return self._process.poll() is not None

    @property
    def has_children(self) -> bool:
        """Whether the server has a child whose exit status `take_status` has not returned yet."""
        return self._children > 0

    def start(
        self,
        function: str,
        arguments: Sequence[str],
        output: int,
        descriptors: Mapping[str, int],
        modules: Sequence[str] = (),
    ) -> int:
        """Start a child that calls a function and exits with the function's result as its status.

        Args:
            function: the function, as `module:name`.
            arguments: the function's arguments.
            output: descriptor of the file for standard output and error.
            descriptors: file descriptors that the child gets. The key is the name of the environment variable from
                which the child reads the descriptor's number.
            modules: modules that the server imports before it forks the child. Later children need not import them.

        Returns:
            The child's process id.

        Raises:
            ServerLost: the server has ended.
        """
        request = {
            "function": function,
            "arguments": list(arguments),
            "folder": os.getcwd(),
            "variables": list(descriptors),
            "modules": list(modules),
        }
        pid = self._ask(request, [output, *descriptors.values()])
        self._children += 1
        return pid

    def take_status(self, pid: int) -> int:
        """Return the exit status of a child that has ended; call this once per child.

        If the server has ended, the status is unknown, and the result is -9 as for a killed child.
        """
        self._children -= 1
        try:
            return self._ask({"status": pid}, [])
        except ServerLost:
            return -signal.SIGKILL

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> int:
        with self._lock:
            try:
                socket.send_fds(self._channel, [json.dumps(request).encode()], descriptors)
                answer = self._channel.recv(MAX_REQUEST)
            except OSError as error:
                raise ServerLost from error
            except BaseException:  # after Ctrl-C, the next request would receive this request's answer
                self.close()
                raise
        if not answer:
            raise ServerLost
        return int(json.loads(answer))

    def close(self) -> None:
        """End the server, but not its children.

        A child that calls `competition.process.exit_with_parent` ends by itself within a second.
        """
        self._channel.close()
        self._process.kill()  # a server that is importing would notice the closed channel only later
        self._process.wait()

    def forget(self) -> None:
        """Close this process's connection to the server without ending the server.

        A process that was forked from the command calls this method, because the server belongs to the command.
        """
        self._channel.close()
        self._process.returncode = 0  # the server is no child of this process


def _launch(modules: Sequence[str], environment: Mapping[str, str]) -> tuple[socket.socket, subprocess.Popen[bytes]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, "-m", "competition.fork_server", str(theirs.fileno()), str(os.getpid()), *modules]
        process = subprocess.Popen(
            command,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,  # in a session of its own, so that Ctrl-C does not reach the server
            pass_fds=(theirs.fileno(),),
        )
    return ours, process


def is_supported() -> bool:
    """Return whether a fork server can be used.

    A fork server needs Linux with `pidfd_open`, with which a signal to a child cannot reach another process by mistake.
    `MASKFOLD_FORKSERVER=0` switches the fork server off.
    """
    if os.environ.get(SWITCH) == "0" or sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return False
    try:
        os.close(os.pidfd_open(os.getpid()))  # Linux before 5.3 and some sandboxes lack `pidfd_open`
    except OSError:
        return False
    return True


_shared: ForkServer | None = None


def shared_server(modules: Sequence[str], environment: Mapping[str, str]) -> ForkServer | None:
    """Return this process's server for an environment, and start the server if needed.

    Args:
        modules: names of the modules that the server imports.
        environment: environment variables of the children. Libraries read some of them at import, so a server with
            another environment is replaced if that server has no children.

    Returns:
        The server; None if the present server has another environment and still has children.
    """
    global _shared
    environment = {name: value for name, value in environment.items() if name != PARENT_VARIABLE}
    if "PYTHONPATH" in environment:  # the server and a child may start in different folders
        folders = environment["PYTHONPATH"].split(os.pathsep)
        environment["PYTHONPATH"] = os.pathsep.join(
            os.path.abspath(folder) for folder in folders
        )  # empty: the working folder
    if _shared is not None and (_shared.is_lost or _shared.environment != environment):
        if _shared.has_children and not _shared.is_lost:
            return None
        close_shared_server()
    if _shared is None:
        _shared = ForkServer(modules, environment)
    return _shared


def close_shared_server() -> None:
    """End this process's server, which frees the memory of its imports.

    The next call of `shared_server` starts another server.
    """
    global _shared
    server, _shared = _shared, None
    if server is not None:
        server.close()


def _forget_shared_server() -> None:
    global _shared
    server, _shared = _shared, None
    if server is not None:
        server.forget()


atexit.register(close_shared_server)
os.register_at_fork(after_in_child=_forget_shared_server)


def _is_readable(descriptor: int, timeout: float | None) -> bool:
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    return bool(poll.poll(None if timeout is None else 1000 * timeout))


# The server


def serve(channel: socket.socket, command: int, modules: Sequence[str]) -> tuple[dict[str, Any], list[int]]:
    """Import the modules, then fork a child for each request until the command ends.

    The function returns only in the forked children. In the server, it ends the process when the command has ended.

    Args:
        channel: the connection to the command.
        command: process id of the command.
        modules: names of the modules to import.

    Returns:
        The child's request and the file descriptors that came with it.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, BLOCKED_SIGNALS)
    if quiet := ARROW_ALLOCATOR not in os.environ:
        os.environ[ARROW_ALLOCATOR] = "background_thread:false"
    _import(modules)
    if quiet:
        del os.environ[ARROW_ALLOCATOR]
    while True:
        readable = _is_readable(channel.fileno(), POLL_SECONDS)
        if os.getppid() != command:
            os._exit(0)
        if not readable:
            continue
        text, descriptors, _, _ = socket.recv_fds(channel, MAX_REQUEST, 8)
        if not text:
            os._exit(0)
        request = json.loads(text)
        if "status" in request:
            answer = os.waitstatus_to_exitcode(os.waitpid(request["status"], 0)[1])
        else:
            _import(request["modules"])
            server = os.getpid()
            answer = os.fork()
            if answer == 0:
                channel.close()
                os.environ[PARENT_VARIABLE] = str(server)
                return request, descriptors
        for descriptor in descriptors:
            os.close(descriptor)
        channel.send(json.dumps(answer).encode())


def _import(modules: Sequence[str]) -> None:
    if new := [name for name in modules if name not in sys.modules]:
        # Imported objects stay alive. Without this line, a quarter of the time would go to checking them for garbage.
        gc.disable()
        for name in new:
            with contextlib.suppress(Exception):
                importlib.import_module(name)
        gc.enable()
        # The garbage collector then does not write to these objects, so a child shares their memory.
        gc.collect()
        gc.freeze()


def run_child(request: Mapping[str, Any], descriptors: Sequence[int]) -> int | None:
    """Set this child up like a newly started process, call the function named in the request, and return its result."""
    os.setsid()
    output, *others = descriptors
    for target in (1, 2):
        os.dup2(output, target)
    os.close(output)
    os.environ.update({name: str(number) for name, number in zip(request["variables"], others, strict=True)})
    os.chdir(request["folder"])
    importlib.invalidate_caches()  # folders may have changed since the server read them
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # Python reseeds its own generator after a fork, but not NumPy's
    module, _, name = request["function"].partition(":")
    sys.argv = [module, *request["arguments"]]
    signal.pthread_sigmask(signal.SIG_SETMASK, ())
    result: int | None = getattr(importlib.import_module(module), name)(*request["arguments"])
    return result


def end_with(work: Callable[[], int | None]) -> NoReturn:
    """Call a function, and exit with its result as the status.

    The exit is like Python's, but faster: modules are not unloaded, which would take seconds.
    """
    status: object = 1
    interrupted = False
    try:
        status = work()
    except SystemExit as end:
        status = end.code
    except BaseException as error:  # noqa: BLE001 - Python also catches every exception at exit
        sys.excepthook(type(error), error, error.__traceback__)
        interrupted = isinstance(error, KeyboardInterrupt)
    if not isinstance(status, int | None):  # the text of `sys.exit("text")`
        print(status, file=sys.stderr)
        status = 1
    threading._shutdown()  # type: ignore[attr-defined]  # waits for threads, as Python does at exit
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    if interrupted:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGINT)
    os._exit((status or 0) & 0xFF)


def _main(descriptor: int, command: int, modules: Sequence[str]) -> NoReturn:
    request, descriptors = serve(socket.socket(fileno=descriptor), command, modules)
    end_with(lambda: run_child(request, descriptors))


if __name__ == "__main__":
    _main(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3:])
