"""A handle on one worker process: start it, talk to it, notice its end, stop it."""

from __future__ import annotations

import collections
import contextlib
import io
import itertools
import os
import queue
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from inference.errors import (
    BackendTimeoutError,
    CancelledError,
    JetLLMError,
    LoadFailedError,
    WorkerCrashedError,
    from_dict,
)
from inference.generation import Chunk, GenerateRequest
from inference.runtime.vitals import Vitals, oom_kills, read_vitals, uses_gpu
from inference.runtime.wire import Connection, Frame, WireError

POLL_S = 0.1  # how soon a waiting caller notices that its client has left
_SEND_TIMEOUT_S = 5.0
_CANCEL_GRACE_S = 2.0
_STDERR_BYTES = 65536
_PACKAGE_PARENT = Path(__file__).resolve().parents[2]
_REASON = re.compile(
    r"error|fail|invalid|corrupt|cannot|unable|not found|assert|out of memory", re.IGNORECASE
)


@dataclass(frozen=True)
class WorkerSpec:
    """What a worker runs.

    Args:
        name: "model/variant", for messages and the process list.
        backend: the module under `inference.backends`.
        options: `LoadOptions.to_dict` without ``runtime_dir``, which the worker gets of its own.
        environment: the whole environment of the child.
        main: the module that the child runs.
        store: the store of the weights, which the child holds there as long as it lives; ``None``: none.
    """

    name: str
    backend: str
    options: Mapping[str, Any]
    environment: Mapping[str, str]
    main: str = "inference.runtime.worker_main"
    store: str | None = None


@dataclass
class _Call:
    frames: queue.SimpleQueue[Frame] = field(default_factory=queue.SimpleQueue)
    last_frame_s: float = field(default_factory=time.monotonic)
    ended: threading.Event = field(default_factory=threading.Event)


class Worker:
    """One child process with one loaded model. Construct and `start` it on a long-lived thread:
    the kernel kills the child when the thread that spawned it ends."""

    def __init__(self, spec: WorkerSpec, *, on_change: Callable[[], None]) -> None:
        self.spec = spec
        self.info: dict[str, Any] | None = None
        self.exit_error: JetLLMError | None = None
        self.requests_total = 0
        self._on_change = on_change
        self._ids = itertools.count(1)
        self._calls: dict[int, _Call] = {}
        self._lock = threading.Lock()
        self._stderr: collections.deque[bytes] = collections.deque()
        self._exited = threading.Event()
        self._load_error: JetLLMError | None = None
        self._kill_cause: JetLLMError | None = None
        self._stopping = False
        self._reaping = False

    def start(self) -> None:
        """Spawn the child and tell it what to load; returns at once.

        Raises:
            OSError: the system has no room for another process; nothing is left behind.
        """
        self.started_s = time.monotonic()
        self._oom_kills = oom_kills()
        with contextlib.ExitStack() as undo:
            self._runtime_dir = Path(tempfile.mkdtemp(prefix="jetllm-"))
            undo.callback(shutil.rmtree, self._runtime_dir, ignore_errors=True)
            ours, theirs = socket.socketpair()
            undo.callback(ours.close)
            lifeline_read, self._lifeline = os.pipe()
            undo.callback(os.close, self._lifeline)
            try:
                self._process = self._spawn(theirs.fileno(), lifeline_read)
            finally:
                theirs.close()
                os.close(lifeline_read)
            undo.pop_all()
        self._output = cast(io.BufferedReader, self._process.stdout)
        self._connection = Connection(ours, send_timeout_s=_SEND_TIMEOUT_S)
        self._drainer = self._thread(self._drain_stderr, "stderr")
        self._thread(self._receive, "wire")
        options = {**self.spec.options, "runtime_dir": str(self._runtime_dir)}
        self._connection.send(
            {"op": "load", "backend": self.spec.backend, "options": options, "store": self.spec.store}
        )

    def _spawn(self, socket_fd: int, lifeline_fd: int) -> subprocess.Popen[bytes]:
        arguments = (socket_fd, lifeline_fd, os.getpid())
        return subprocess.Popen(
            [sys.executable, "-m", self.spec.main, *map(str, arguments)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            pass_fds=(socket_fd, lifeline_fd),
            start_new_session=True,
            env={**self.spec.environment, "PYTHONPATH": os.pathsep.join(self._python_path())},
            cwd=self._runtime_dir,
        )

    def _python_path(self) -> list[str]:
        """Our own package first, then what the environment names: an engine may be a source checkout."""
        others = self.spec.environment.get("PYTHONPATH", "").split(os.pathsep)
        return [str(_PACKAGE_PARENT), *filter(None, others)]

    def _thread(self, target: Callable[[], None], role: str) -> threading.Thread:
        thread = threading.Thread(target=target, name=f"{role}:{self.spec.name}", daemon=True)
        thread.start()
        return thread

    @property
    def pid(self) -> int:
        """The child's process id, which is also its process group's."""
        return self._process.pid

    @property
    def ready(self) -> bool:
        """Whether it has loaded and lives."""
        return self.info is not None and not self._exited.is_set()

    @property
    def exited(self) -> bool:
        """Whether the child has ended, been reaped, and `exit_error` says why."""
        return self._exited.is_set()

    def vitals(self) -> Vitals | None:
        """The child's memory and work; ``None`` when it has ended."""
        return None if self.exited else read_vitals(self.pid)

    def uses_gpu(self) -> bool:
        """Whether the child holds memory that `vitals` cannot show."""
        return not self.exited and uses_gpu(self.pid)

    def silent_s(self, now_s: float) -> float:
        """The longest time that a running call has heard nothing."""
        calls = list(self._calls.values())
        return max((now_s - call.last_frame_s for call in calls), default=0.0)

    def generate(
        self, request: GenerateRequest, cancelled: Callable[[], bool]
    ) -> Generator[Chunk, None, None]:
        """Yield the worker's chunks; prefill progress only feeds the watchdog.

        Raises:
            CancelledError: *cancelled* became true; the worker was told to stop.
            WorkerCrashedError, BackendTimeoutError: the worker ended.
            JetLLMError: the backend's own error.
        """
        with self._call({"op": "generate", "request": request.to_dict()}) as call:
            while True:
                frame = self._next(call, cancelled)
                event = frame.get("event")
                if event == "chunk":
                    yield Chunk.from_dict(frame["chunk"])
                elif event == "end":
                    return
                else:
                    raise from_dict(frame.get("error") or {})

    def ask(self, op: str, *, cancelled: Callable[[], bool] = lambda: False, **fields: Any) -> Any:
        """Return the answer to an op that has a single one; `inference.runtime.wire` lists them.

        Raises:
            CancelledError: *cancelled* became true; the worker was told to stop.
            WorkerCrashedError, BackendTimeoutError: the worker ended.
            JetLLMError: the backend's own error.
        """
        with self._call({"op": op, **fields}) as call:
            frame = self._next(call, cancelled)
            if frame.get("event") != "value":
                raise from_dict(frame.get("error") or {})
            return frame["value"]

    def tokenize(self, text: str) -> list[int]:
        """Return the token ids of *text*."""
        return [int(token) for token in self.ask("tokenize", text=text)]

    def _next(self, call: _Call, cancelled: Callable[[], bool]) -> Frame:
        while True:
            try:
                frame = call.frames.get(timeout=POLL_S)
            except queue.Empty:
                frame = {}
            if cancelled():
                raise CancelledError("the caller left")
            if frame:
                return frame

    def _call(self, frame: Frame) -> _RunningCall:
        return _RunningCall(self, frame)

    def open_call(self, frame: Frame) -> tuple[int, _Call]:
        """Register a call and send its frame."""
        call = _Call()
        with self._lock:
            request_id = next(self._ids)
            if self._exited.is_set():
                call.frames.put(self._exit_frame())
                call.ended.set()
                return request_id, call
            self._calls[request_id] = call
        self.requests_total += 1
        self._connection.send({**frame, "id": request_id})
        return request_id, call

    def close_call(self, request_id: int, call: _Call) -> None:
        """Cancel a call that has not ended, and wait shortly for the engine to let go of its slot."""
        if not call.ended.is_set():
            self._connection.send({"op": "cancel", "id": request_id})
            call.ended.wait(_CANCEL_GRACE_S)

    def stop(self) -> None:
        """Ask the child to end; returns at once."""
        self._stopping = True
        self._connection.send({"op": "stop"})

    def kill(self, cause: JetLLMError | None = None, sig: int = signal.SIGKILL) -> None:
        """Signal the child's process group; *cause* becomes the `exit_error`."""
        if cause is not None and self._kill_cause is None:
            self._kill_cause = cause
        with self._lock:
            # Once reaped, the number may belong to a stranger.
            if not self._reaping:
                os.killpg(self.pid, sig)

    def abandon(self, cause: JetLLMError) -> None:
        """Tell every caller *cause* at once: a child that hangs may take its time to die."""
        self._kill_cause = self._kill_cause or cause
        with self._lock:
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.frames.put({"event": "error", "error": cause.to_dict()})
            call.ended.set()

    def wait(self, timeout_s: float) -> bool:
        """Wait until the child is reaped."""
        return self._exited.wait(timeout_s)

    def stderr_tail(self, lines: int = 20) -> list[str]:
        """The last lines that the child wrote to stdout and stderr."""
        text = b"".join(list(self._stderr)).decode(errors="replace")
        return [line for line in text.splitlines() if line.strip()][-lines:]

    def _drain_stderr(self) -> None:
        kept = 0
        with self._output:
            while data := self._output.read1(8192):
                self._stderr.append(data)
                kept += len(data)
                while kept > _STDERR_BYTES and len(self._stderr) > 1:
                    kept -= len(self._stderr.popleft())

    def _receive(self) -> None:
        try:
            for frame in self._connection.frames():
                self._dispatch(frame)
        except (WireError, KeyError, TypeError, ValueError) as error:
            self.kill(WorkerCrashedError(f"{self.spec.name}: the worker sent garbage: {error}"))
        self._finish()

    def _dispatch(self, frame: Frame) -> None:
        event = frame["event"]
        if event == "ready":
            self.info = dict(frame["info"])
            self._on_change()
        elif event == "failed":
            self._load_error = from_dict(frame["error"])
        else:
            call = self._calls.get(frame["id"])
            if call is None:
                return  # the rest of a stream whose caller has left
            call.last_frame_s = time.monotonic()
            if event != "chunk":
                with self._lock:
                    self._calls.pop(frame["id"], None)
                call.ended.set()
            elif "p" in frame["chunk"]:
                return  # progress of a prefill only proves life
            call.frames.put(frame)

    def _finish(self) -> None:
        """End the child's group, reap the child, then tell every caller why.

        A closed socket means that the child has ended, its exit code fixed, or is beyond use.
        """
        self.kill()
        with self._lock:
            self._reaping = True
        self._process.wait()
        os.close(self._lifeline)
        self._drainer.join(_CANCEL_GRACE_S)
        self.exit_error = self._why()
        self._connection.close()
        shutil.rmtree(self._runtime_dir, ignore_errors=True)
        with self._lock:
            self._exited.set()
            calls, self._calls = list(self._calls.values()), {}
        for call in calls:
            call.frames.put(self._exit_frame())
            call.ended.set()
        self._on_change()

    def _exit_frame(self) -> Frame:
        error = self.exit_error or WorkerCrashedError(f"{self.spec.name}: the worker was stopped")
        return {"event": "error", "error": error.to_dict()}

    def _why(self) -> JetLLMError | None:
        if self._kill_cause is not None:
            return self._kill_cause
        if self._load_error is not None:
            return self._with_reason(self._load_error)
        if self._stopping:
            return None
        return self._crash()

    def _crash(self) -> JetLLMError:
        code = self._process.returncode
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"
        after = f"{time.monotonic() - self.started_s:.1f} s after its start"
        hint = None
        if code == -signal.SIGKILL:
            who = "it was" if oom_kills() > self._oom_kills else "often"
            hint = f"{who} the kernel's OOM killer; check: journalctl -k | grep -i oom"
        message = f"{self.spec.name}: the worker {how}, {after}"
        if self.info is None and code != -signal.SIGKILL:
            return self._with_reason(LoadFailedError(f"{message}, while loading"))
        error = WorkerCrashedError(message, hint=hint)
        # One that ends by itself had a reason and wrote it down; a signal leaves the lines of before.
        return self._with_reason(error) if code > 0 else error

    def _with_reason(self, error: JetLLMError) -> JetLLMError:
        telling = [line for line in self.stderr_tail(200) if _REASON.search(line)]
        reason = next(
            (line for line in telling if "error loading model" in line), telling[-1] if telling else None
        )
        if reason is None or isinstance(error, BackendTimeoutError):
            return error
        return type(error)(f"{error.message}: {_plain(reason)}", hint=error.hint, details=error.details)


class _RunningCall:
    """A call that is cancelled when its block is left before its end."""

    def __init__(self, worker: Worker, frame: Frame) -> None:
        self._worker = worker
        self._frame = frame

    def __enter__(self) -> _Call:
        self._id, self._running = self._worker.open_call(self._frame)
        return self._running

    def __exit__(self, *_: object) -> None:
        self._worker.close_call(self._id, self._running)


def _plain(line: str) -> str:
    """The line without an engine's clock and level, and without directories."""
    text = re.sub(r"^[\d.:]+\s+[A-Z]\s+", "", line.strip())
    return re.sub(r"(?<![\w.])/(?:[^\s'\":]+/)+", "", text)[:300]
