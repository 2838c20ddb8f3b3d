"""The engines: the surface that callers see, over the thread that computes."""

from __future__ import annotations

import asyncio
import ctypes
import json
import queue
import threading
import uuid
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from ..protocol.error_protocol import BadRequestError
from .config import EngineConfig
from .loop import Loop, Request
from .model import Tokenizer

MODES = ("local", "interactive", "server")


class _Engine:
    """What both engines share: loading, checking, and the threads, which are not daemons."""

    def __init__(
        self,
        model: str,
        device: str = "auto",
        *,
        model_lib: str | None = None,
        mode: str = "local",
        engine_config: EngineConfig | None = None,
    ) -> None:
        assert isinstance(device, str)
        config = engine_config or EngineConfig()
        directory, library = Path(model), Path(model_lib or Path(model) / "lib.so")
        self._chat_config = json.loads((directory / "mlc-chat-config.json").read_text())
        if not library.exists():
            raise FileNotFoundError(f"Cannot find the model library: {library}")
        if device not in ("cpu", "cpu:0"):
            raise ValueError(f"Device is not found on your local environment: {device}")
        self.tokenizer = Tokenizer()
        self._loop = Loop(directory, library, config, self._emit)
        self._terminated = False
        self._background_loop_thread = threading.Thread(target=self._loop.run)
        self._background_stream_back_loop_thread = threading.Thread(target=self._hand_out)
        self._background_loop_thread.start()
        self._background_stream_back_loop_thread.start()
        # Whatever keeps the thread above from loading keeps this one here for ever.
        self._loop.loaded.wait()
        limit = self._chat_config["context_window_size"]
        config.max_single_sequence_length = min(config.max_single_sequence_length or limit, limit)
        config.max_total_sequence_length = config.max_total_sequence_length or limit
        self.engine_config = config
        self.max_input_sequence_length = min(limit, config.max_single_sequence_length)

    def _hand_out(self) -> None:
        while self._background_loop_thread.is_alive():
            if self._loop.callback_failed.wait(0.02):
                raise RuntimeError("Check failed: NaN in the logits cannot be handed out")

    def terminate(self) -> None:
        """Stop the threads."""
        if not self._terminated:
            self._terminated = True
            self._loop.inbox.put(("exit", None))
            self._background_loop_thread.join()
            self._background_stream_back_loop_thread.join()

    def reset(self) -> None:
        """Forget all requests and the prefix cache."""
        self._loop.inbox.put(("reset", None))

    def _emit(self, request_id: str, *output: Any) -> None:
        raise NotImplementedError

    def _request(self, request_id: str, prompt: list[int], fields: dict[str, Any]) -> Request:
        if len(prompt) > self.max_input_sequence_length:
            raise BadRequestError(
                f"Request prompt has {len(prompt)} tokens in total, larger than the model input length "
                f"limit {self.max_input_sequence_length}."
            )
        template = self._chat_config["conv_template"]
        fields["stop"] += template.get("stop_str", [])  # the caller's own list, as in the real one
        fields["stop_token_ids"] = template.get("stop_token_ids", [])
        answer = self._loop.script.get("answer")
        fields["script"] = _c_environment(answer[1:]) if answer and answer.startswith("$") else answer
        return Request(request_id, prompt, fields)

    def _rendered(self, messages: list[dict[str, Any]]) -> list[int]:
        template = self._chat_config["conv_template"]
        if any(message["role"] not in template["roles"] for message in messages):
            raise BadRequestError("a role of the messages is not supported")
        turns = [f"{template['roles'][m['role']]}: {m['content']}\n" for m in messages]
        return self.tokenizer.encode("".join(turns) + template["roles"]["assistant"] + ":")


class AsyncMLCEngine(_Engine):
    """The engine for an event loop, which is the one of its first request."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self._streams: dict[str, asyncio.Queue[Any]] = {}
        self._event_loop: asyncio.AbstractEventLoop | None = None
        super().__init__(*args, **named)
        self.completions = SimpleNamespace(create=self._complete)
        self.chat = SimpleNamespace(completions=SimpleNamespace(create=self._chat))

    async def abort(self, request_id: str) -> None:
        """End the request inside the engine; who reads its stream is told nothing."""
        self._abort(request_id)

    async def metrics(self) -> dict[str, Any]:
        """Return nothing in particular."""
        return {}

    async def _complete(self, *, prompt: str | list[int], **fields: Any) -> AsyncIterator[Any]:
        checked = _checked(fields, top=fields.get("logprobs"), most=5)
        ids = self.tokenizer.encode(prompt) if isinstance(prompt, str) else list(prompt)
        return self._stream(ids, checked, chat=False)

    async def _chat(self, *, messages: list[dict[str, Any]], **fields: Any) -> AsyncIterator[Any]:
        top = fields.get("top_logprobs", 0) if fields.get("logprobs") else None
        checked = _checked(fields, top=top, most=20)
        return self._stream(self._rendered(messages), checked, chat=True)

    async def _stream(self, prompt: list[int], fields: dict[str, Any], *, chat: bool) -> AsyncIterator[Any]:
        request = self._request(fields.pop("request_id"), prompt, fields)
        self._event_loop = self._event_loop or asyncio.get_running_loop()
        stream: asyncio.Queue[Any] = asyncio.Queue()
        try:
            if request.request_id in self._streams:
                raise RuntimeError(f'The request id "{request.request_id} already exists.')
            self._streams[request.request_id] = stream
            self._loop.inbox.put(("add", request))
            while True:
                text, logprob, reason, usage = await stream.get()
                if usage is not None:
                    if fields["include_usage"]:
                        yield SimpleNamespace(choices=[], usage=_namespace(usage))
                    break
                if text or reason:
                    choice = _choice(text, logprob, reason, chat=chat)
                    yield SimpleNamespace(choices=[choice], usage=None)
        except BaseException:
            self._abort(request.request_id)
            raise

    def _abort(self, request_id: str) -> None:
        self._streams.pop(request_id, None)
        self._loop.inbox.put(("abort", request_id))

    def _emit(self, request_id: str, *output: Any) -> None:
        if self._event_loop is not None and not self._event_loop.is_closed():
            self._event_loop.call_soon_threadsafe(self._push, request_id, output)

    def _push(self, request_id: str, output: tuple[Any, ...]) -> None:
        stream = self._streams.get(request_id)
        if stream is not None:
            stream.put_nowait(output)
            if output[-1] is not None:
                del self._streams[request_id]


class MLCEngine(_Engine):
    """The synchronous engine: one queue for all requests, so what one leaves the next one reads."""

    def __init__(self, *args: Any, **named: Any) -> None:
        self._outputs: queue.SimpleQueue[tuple[Any, ...]] = queue.SimpleQueue()
        super().__init__(*args, **named)
        self.completions = SimpleNamespace(create=self._complete)

    def _complete(self, *, prompt: str, **fields: Any) -> Iterator[str]:
        checked = _checked(fields, top=fields.get("logprobs"), most=5)
        request = self._request(checked.pop("request_id"), self.tokenizer.encode(prompt), checked)
        self._loop.inbox.put(("add", request))
        while True:
            text, _, _, usage = self._outputs.get()
            if usage is not None:
                return
            yield text

    def _emit(self, request_id: str, *output: Any) -> None:
        self._outputs.put(output)


_FIELDS = {
    "stream", "stream_options", "max_tokens", "temperature", "top_p", "frequency_penalty",
    "presence_penalty", "logprobs", "top_logprobs", "logit_bias", "seed", "stop", "n", "response_format",
    "request_id", "extra_body",
}  # fmt: skip


def _checked(fields: dict[str, Any], *, top: int | None, most: int) -> dict[str, Any]:
    """Check as the real protocol does, whose errors are ValueErrors too."""
    if set(fields) - _FIELDS:
        raise TypeError(f"unexpected arguments {sorted(set(fields) - _FIELDS)}")
    if top is not None and not 0 <= top <= most:
        raise ValueError(f'"logprobs" must be in range [0, {most}]')
    for name in ("frequency_penalty", "presence_penalty"):
        if abs(fields.get(name) or 0) > 2:
            raise ValueError("Penalty value should be in range [-2, 2].")
    wanted = fields.get("response_format") or {}
    if wanted and wanted.get("type") not in ("text", "json_object"):
        raise ValueError("response_format: type: expected text or json_object")
    if any(abs(bias) > 100 for bias in (fields.get("logit_bias") or {}).values()):
        raise ValueError("Logit bias value should be in range [-100, 100]")
    stop = fields.get("stop")
    limit = fields.get("max_tokens")
    names = ("temperature", "top_p", "frequency_penalty", "presence_penalty", "logit_bias", "seed")
    return {
        **{name: fields.get(name) for name in (*names, "response_format")},
        "request_id": fields.get("request_id") or uuid.uuid4().hex,
        "include_usage": bool((fields.get("stream_options") or {}).get("include_usage")),
        "ignore_eos": bool(((fields.get("extra_body") or {}).get("debug_config") or {}).get("ignore_eos")),
        "max_tokens": -1 if limit is None else limit,
        "stop": [stop] if isinstance(stop, str) else [] if stop is None else stop,
        "logprobs": top is not None,
        "top_logprobs": top or 0,
    }


def _choice(text: str, logprob: dict[str, Any] | None, reason: str | None, *, chat: bool) -> SimpleNamespace:
    if chat:
        content = None if logprob is None else SimpleNamespace(content=[_namespace(logprob)])
        return SimpleNamespace(delta=SimpleNamespace(content=text), finish_reason=reason, logprobs=content)
    found = None
    if logprob is not None:
        top = {other["token"]: other["logprob"] for other in logprob["top_logprobs"]}
        found = SimpleNamespace(
            tokens=[logprob["token"]], token_logprobs=[logprob["logprob"]], top_logprobs=[top]
        )
    return SimpleNamespace(text=text, finish_reason=reason, logprobs=found)


def _c_environment(name: str) -> str:
    getenv = ctypes.CDLL(None).getenv
    getenv.restype = ctypes.c_char_p
    return (getenv(name.encode()) or b"").decode()


def _namespace(value: dict[str, Any]) -> SimpleNamespace:
    """Make an object of a mapping; lists of mappings become lists of objects, other values stay."""
    made = {
        name: [_namespace(one) for one in item] if name == "top_logprobs" else item
        for name, item in value.items()
    }
    return SimpleNamespace(**made)
