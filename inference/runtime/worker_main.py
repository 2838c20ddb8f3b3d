"""The worker process: loads one model with one backend and serves frames until told to stop.

Started as ``python -m inference.runtime.worker_main SOCKET_FD LIFELINE_FD PARENT_PID``. It ends by
``os._exit``: an engine's own destructors have deadlocked, and only the end of the process gives
all of its memory back.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import os
import resource
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NoReturn

from inference.artifacts.holdings import hold
from inference.backends import BackendProtocol, LoadOptions, engine_version, open_backend
from inference.errors import InternalError, JetLLMError, LoadFailedError, UnsupportedParameterError
from inference.generation import Chunk, GenerateRequest
from inference.runtime.wire import Connection, Frame, WireError

EXIT_LOAD_FAILED = 3
EXIT_PARENT_GONE = 4
OOM_SCORE = 800  # the kernel's OOM killer takes the worker, never the daemon
_LAST_WORDS_S = 2.0
_PR_SET_PDEATHSIG = 1
_CLONE_NEWUSER = 0x10000000
_CLONE_NEWNET = 0x40000000


def main(argv: list[str]) -> NoReturn:
    """Run the worker to its end, which is always `os._exit`."""
    socket_fd, lifeline_fd, parent_pid = (int(text) for text in argv)
    isolated = _confine()
    _tie_to_parent(parent_pid, lifeline_fd)
    connection = Connection(socket.socket(fileno=socket_fd))
    try:
        frames = connection.frames()
        first = next(frames, None)
        if first is None or first.get("op") != "load":
            os._exit(EXIT_PARENT_GONE)
        backend = _load(connection, first, network_isolated=isolated)
        _serve(backend, connection, frames)
    except WireError as error:
        sys.stderr.write(f"worker: {error}\n")
    sys.stderr.flush()
    os._exit(0)


def _tie_to_parent(parent_pid: int, lifeline_fd: int) -> None:
    """Die with the daemon: by signal when its spawning thread ends, else by the lifeline pipe.

    After `_confine`: a new user namespace clears the parent-death signal and needs a single thread.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent_pid:  # it died before prctl took effect
        os._exit(EXIT_PARENT_GONE)
    threading.Thread(target=_watch_lifeline, args=(lifeline_fd,), name="lifeline", daemon=True).start()


def _watch_lifeline(lifeline_fd: int) -> None:
    while os.read(lifeline_fd, 1):
        pass
    os._exit(EXIT_PARENT_GONE)


def _confine() -> bool:
    """Give up what a worker does not need; return whether the network is out of reach."""
    faulthandler.enable()  # SIGABRT from the watchdog leaves the Python stacks on stderr
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core dump would hold prompts
    with contextlib.suppress(OSError):  # denied in some containers; the kernel's default stays
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))
    libc = ctypes.CDLL(None, use_errno=True)
    # Root may leave the network alone; other users need a user namespace, which many hosts allow.
    return bool(libc.unshare(_CLONE_NEWNET) == 0 or libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) == 0)


def _load(connection: Connection, frame: Frame, *, network_isolated: bool) -> BackendProtocol:
    started_s = time.monotonic()
    try:
        options = LoadOptions.from_dict(frame["options"])
        if frame.get("store"):
            _hold(Path(frame["store"]), options.weights)
        backend = open_backend(frame["backend"], options)
    except JetLLMError as error:
        _fail(connection, error)
    except Exception as error:
        # Engines raise what they like; the daemon adds the reason found on stderr.
        traceback.print_exc()
        _fail(connection, LoadFailedError(f"{type(error).__name__}: {error}"))
    # Engines install handlers of their own: stopping is the daemon's business.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    info = {
        "engine": backend.engine,
        "capabilities": sorted(backend.capabilities),
        "slots": backend.slots,
        "context_tokens": backend.context_tokens,
        "load_s": time.monotonic() - started_s,
        "packages": engine_version(frame["backend"]),
        "network_isolated": network_isolated,
    }
    connection.send({"event": "ready", "info": info})
    return backend


def _hold(store: Path, weights: Path) -> None:
    """Use the weights to the end of this process, whichever it is: nobody removes them to make room.

    Raises:
        ModelNotPulledError: somebody did, between the choice and now.
    """
    if not weights.is_relative_to(store):
        return
    try:
        hold(store, weights)
    except OSError as error:  # a mount without locks, where nobody removes by age
        sys.stderr.write(f"worker: the weights are not held: {error}\n")


def _fail(connection: Connection, error: JetLLMError) -> NoReturn:
    """Tell *error* and end, with what the engine has still to say: llama.cpp logs from a thread of its own.

    Only the process's proper end waits for that thread; should a destructor hang, it is cut short.
    """
    connection.send({"event": "failed", "error": error.to_dict()})
    sys.stderr.flush()
    cut = threading.Timer(_LAST_WORDS_S, os._exit, (EXIT_LOAD_FAILED,))
    cut.daemon = True
    cut.start()
    ctypes.CDLL(None).exit(EXIT_LOAD_FAILED)
    raise AssertionError("exit returned")


def _serve(backend: BackendProtocol, connection: Connection, frames: Iterator[Frame]) -> None:
    cancelled: dict[int, threading.Event] = {}
    for frame in frames:
        op, request_id = frame.get("op"), int(frame.get("id", 0))
        if op == "stop":
            return
        if op == "cancel":
            if request_id in cancelled:
                cancelled[request_id].set()
            continue
        event = cancelled[request_id] = threading.Event()
        call = _Call(backend, connection, frame, event, cancelled)
        threading.Thread(target=call.run, name=f"call-{request_id}", daemon=True).start()


class _Call:
    """One request inside the worker."""

    def __init__(
        self,
        backend: BackendProtocol,
        connection: Connection,
        frame: Frame,
        event: threading.Event,
        register: dict[int, threading.Event],
    ) -> None:
        self._backend = backend
        self._connection = connection
        self._frame = frame
        self._event = event
        self._register = register
        self._id: int = frame["id"]

    def run(self) -> None:
        """Answer the frame; every path ends in one closing frame."""
        try:
            closing = self._generate() if self._frame["op"] == "generate" else self._value()
        except JetLLMError as error:
            closing = {"event": "error", "error": error.to_dict()}
        except Exception as error:
            traceback.print_exc()
            closing = {"event": "error", "error": InternalError(f"{type(error).__name__}").to_dict()}
        self._register.pop(self._id, None)
        self._connection.send({**closing, "id": self._id})

    def _value(self) -> Frame:
        backend, frame = self._backend, self._frame
        answers: dict[str, Callable[[], Any]] = {
            "tokenize": lambda: backend.tokenize(frame["text"]),
            "detokenize": lambda: backend.detokenize(frame["ids"]),
            "prompt_tokens": lambda: backend.prompt_tokens(GenerateRequest.from_dict(frame["request"])),
            "embed": self._embed,
        }
        return {"event": "value", "value": answers[frame["op"]]()}

    def _embed(self) -> Any:
        if "embed" not in self._backend.capabilities:
            raise UnsupportedParameterError(
                "input: this model was loaded to generate text and makes no embeddings",
                hint="name an embedding model: GET /v1/models lists them",
                param="model",
            )
        inputs = [item if isinstance(item, str) else tuple(item) for item in self._frame["inputs"]]
        vectors, prompt_tokens = self._backend.embed(inputs, self._event.is_set)
        return {"vectors": vectors, "prompt_tokens": prompt_tokens}

    def _generate(self) -> Frame:
        request = GenerateRequest.from_dict(self._frame["request"])
        if not self._backend.capabilities & {"chat", "completion"}:
            raise UnsupportedParameterError(
                "model: it was loaded to make embeddings and generates no text",
                hint="name another model: GET /v1/models lists them",
                param="model",
            )
        if request.echo and "score" not in self._backend.capabilities:
            raise UnsupportedParameterError(
                "echo: the engine does not tell the probabilities of a given text",
                hint="leave it out, or use a llamacpp or transformers variant",
                param="echo",
            )
        if "tools" not in self._backend.capabilities:
            _check_without_tools(request)
        push = getattr(self._backend, "push", None)
        if push is not None:
            push(request, self._event.is_set, self._emit)
        else:
            for chunk in self._backend.generate(request, self._event.is_set):
                self._emit(chunk)
                if self._event.is_set():
                    break
        return {"event": "end"}

    def _emit(self, chunk: Chunk) -> None:
        if not self._connection.send({"event": "chunk", "id": self._id, "chunk": chunk.to_dict()}):
            self._event.set()  # nobody listens any more


def _check_without_tools(request: GenerateRequest) -> None:
    """Refuse what the backend would leave out without a word."""
    called = any(message.tool_calls for message in request.messages or ())
    if not request.tools and not called:
        return
    what, param = ("tools", "tools") if request.tools else ("tool_calls", "messages")
    raise UnsupportedParameterError(
        f"{what}: the model's chat template has none, or its engine reads none",
        hint="use a llamacpp variant of a model whose template has tools (Qwen2.5, Qwen3, Llama 3.x), or send"
        ' "tool_choice": "none" and no calls',
        param=param,
    )


if __name__ == "__main__":
    main(sys.argv[1:])
