"""The HTTP target: a model behind a running daemon, through its API and nothing else."""

from __future__ import annotations

import http.client
import ipaddress
import json
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote, urlsplit

from phase3.measured import Ask, End, Exchange, MeasuredTarget, Piece
from phase3.target import TargetError, TokenLogprob

_TIMEOUT_S = 900.0  # of silence: a load or a long prompt says nothing while it lasts
_CONNECT_S = 10.0
_START = "start it: jetllm serve"
UNREACHABLE = "connection_failed"
"""The code of a `TargetError` that says that no daemon answered."""


class HttpTarget(MeasuredTarget):
    """A variant of a model, by default the best one, of the daemon at *url*.

    Every request has a connection of its own, opened before its clock starts.

    Raises:
        TargetError: nobody answers there, or nothing of that name can run.
    """

    def __init__(
        self,
        url: str,
        model: str,
        variant: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = _TIMEOUT_S,
    ) -> None:
        self._daemon = _Daemon(url, api_key, timeout_s)
        super().__init__(model, variant)

    @contextmanager
    def _exchange(self, ask: Ask) -> Iterator[Exchange]:
        chats = ask.messages is not None
        path = "/v1/chat/completions" if chats else "/v1/completions"
        with self._daemon.opened("POST", path, self._body(ask)) as (sent_s, response):
            pieces = _pieces(response) if ask.stream else iter((_whole(response),))
            yield Exchange(sent_s, pieces)

    def _body(self, ask: Ask) -> dict[str, Any]:
        body: dict[str, Any] = {
            "model": self._model,
            "variant": self._variant,
            "max_tokens": ask.max_tokens,
            "temperature": ask.temperature,
            "seed": ask.seed,
            "stop": list(ask.stop),
            "ignore_eos": ask.ignore_eos,
            "cache_prompt": ask.cache_prompt,
            "stream": ask.stream,
            "stream_options": {"include_usage": True},
        }
        if ask.messages is not None:
            return {**body, "messages": [dict(turn) for turn in ask.messages], "logprobs": ask.logprobs}
        echo = {"echo": True} if ask.echo else {}
        return {**body, "prompt": ask.prompt, "logprobs": 0 if ask.logprobs else None, **echo}

    def _select(self, model: str, variant: str | None) -> Mapping[str, Any]:
        return self._daemon.post("/jetllm/v1/select", {"model": model, "variant": variant})

    def _status(self) -> Mapping[str, Any]:
        return self._daemon.get("/jetllm/v1/status")

    def _device(self) -> Mapping[str, Any]:
        return self._daemon.get("/jetllm/v1/device")

    def _entry(self) -> Mapping[str, Any]:
        card = self._daemon.get(f"/v1/models/{quote(self._model)}")
        return {"id": card["id"], **card["jetllm"]}

    def _pull(self) -> None:
        self._follow("pull")

    def _build(self) -> None:
        self._follow("build")

    def _follow(self, what: str) -> None:
        """Start long work and read its events to the end."""
        path = f"/jetllm/v1/models/{quote(self._model)}/{what}"
        kind = ""
        with self._daemon.opened("POST", path, {"variant": self._variant}) as (_, response):
            for line in response:
                name, _, value = line.strip().partition(b": ")
                if name == b"event":
                    kind = value.decode()
                elif name == b"data" and kind == "error":
                    raise _error(json.loads(value), None)
        if kind != "done":
            raise TargetError(
                f"{self._model}: the {what} ended without saying how", hint="see the daemon's log"
            )

    def _load(self) -> None:
        self._daemon.post("/jetllm/v1/models/load", {"model": self._model, "variant": self._variant})

    def _unload(self) -> Mapping[str, Any]:
        return self._daemon.post("/jetllm/v1/models/unload", {"model": self._model})

    def record_evidence(self, record: Mapping[str, Any]) -> Mapping[str, Any]:
        """See `Target`."""
        return self._daemon.post("/jetllm/v1/evidence", record)

    @property
    def _is_here(self) -> bool:
        return self._daemon.is_here


def models_of(url: str, api_key: str | None = None) -> list[dict[str, Any]]:
    """Return the entries of the models that the daemon at *url* knows.

    Raises:
        TargetError: nobody answers there.
    """
    cards = _Daemon(url, api_key, _TIMEOUT_S).get("/v1/models")["data"]
    return [{"id": card["id"], **card["jetllm"]} for card in cards]


class _Daemon:
    """Requests to one daemon, each on a connection of its own."""

    def __init__(self, url: str, api_key: str | None, timeout_s: float) -> None:
        parts = urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise TargetError(
                f"url: expected http://HOST:PORT, got {url!r}", hint="for example http://127.0.0.1:8080"
            )
        self._url = url
        is_tls = parts.scheme == "https"
        self._kind = http.client.HTTPSConnection if is_tls else http.client.HTTPConnection
        self._host, self._port = parts.hostname, parts.port
        self._prefix = parts.path.rstrip("/")
        self._timeout_s = timeout_s
        self._headers = {"Content-Type": "application/json", "Connection": "close"}
        if api_key is not None:
            self._headers["Authorization"] = f"Bearer {api_key}"

    @property
    def is_here(self) -> bool:
        """Whether it runs on this machine."""
        try:
            return ipaddress.ip_address(self._host).is_loopback
        except ValueError:
            return self._host == "localhost"

    def get(self, path: str) -> dict[str, Any]:
        """Return the object at *path*."""
        return self._object("GET", path, None)

    def post(self, path: str, body: Mapping[str, Any]) -> dict[str, Any]:
        """Send *body* and return the object that answers it."""
        return self._object("POST", path, body)

    def _object(self, method: str, path: str, body: Mapping[str, Any] | None) -> dict[str, Any]:
        with self.opened(method, path, body) as (_, response):
            return _object(response.read())

    @contextmanager
    def opened(
        self, method: str, path: str, body: Mapping[str, Any] | None
    ) -> Iterator[tuple[float, http.client.HTTPResponse]]:
        """Connect, then send; give the time of sending and the answer. Leaving the block hangs up.

        Raises:
            TargetError: nobody answers, it is no daemon of ours, or it says what is wrong.
        """
        data = None if body is None else json.dumps(body).encode()
        connection = self._kind(self._host, self._port, timeout=min(_CONNECT_S, self._timeout_s))
        try:
            connection.connect()
            connection.sock.settimeout(self._timeout_s)
            sent_s = time.monotonic()
            connection.request(method, f"{self._prefix}{path}", data, self._headers)
            with connection.getresponse() as response:
                if response.status != http.HTTPStatus.OK:
                    raise _error(_parsed(response.read()), response.status)
                yield sent_s, response
        except (OSError, http.client.HTTPException) as error:
            what = str(error) or type(error).__name__
            raise TargetError(
                f"{self._url} does not answer: {what}", hint=_START, code=UNREACHABLE
            ) from error
        finally:
            connection.close()


def _pieces(response: http.client.HTTPResponse) -> Iterator[Piece]:
    """Read a stream of events; the last piece is whole when the stream said that it is done.

    Raises:
        TargetError: the stream told of an error, or broke off.
    """
    reason, end, arrived_s = None, None, 0.0
    timings: Mapping[str, Any] | None = None
    for line in response:
        arrived_s = time.monotonic()
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            break
        event = _object(line[6:])
        if "error" in event:
            raise _error(event, None)
        timings = event.get("timings") or timings
        for choice in event["choices"]:
            reason = choice["finish_reason"] or reason
            text = choice["delta"].get("content") if "delta" in choice else choice["text"]
            if text or choice["logprobs"]:
                yield Piece(arrived_s, text or "", _logprobs(choice["logprobs"]))
        if event.get("usage") is not None and reason is not None:
            end = _end(reason, event["usage"], timings)
    else:
        raise TargetError("the stream broke off before its end", hint="see the daemon's log")
    yield Piece(arrived_s, end=end)


def _whole(response: http.client.HTTPResponse) -> Piece:
    """Return an answer that is not streamed as its one piece."""
    body = _object(response.read())
    arrived_s = time.monotonic()
    choice = body["choices"][0]
    text = choice["message"]["content"] if "message" in choice else choice["text"]
    end = _end(choice["finish_reason"], body["usage"], body.get("timings"))
    return Piece(arrived_s, text, _logprobs(choice.get("logprobs")), end)


def _end(reason: str, usage: Mapping[str, Any], timings: Mapping[str, Any] | None) -> End:
    return End(
        finish_reason=reason,
        prompt_tokens=usage["prompt_tokens"],
        completion_tokens=usage["completion_tokens"],
        cached_tokens=(usage.get("prompt_tokens_details") or {}).get("cached_tokens", 0),
        engine_prefill_s=None if timings is None else timings["prompt_ms"] / 1000,
        engine_decode_s=None if timings is None else timings["predicted_ms"] / 1000,
    )


def _logprobs(value: Mapping[str, Any] | None) -> tuple[TokenLogprob, ...]:
    """Read both of OpenAI's forms: of chats and of completions."""
    if not value:
        return ()
    if "content" in value:
        return tuple(TokenLogprob(item["token"], item["logprob"]) for item in value["content"])
    pairs = zip(value["tokens"], value["token_logprobs"], strict=True)
    return tuple(TokenLogprob(token, logprob) for token, logprob in pairs if logprob is not None)


def _parsed(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _object(data: bytes) -> dict[str, Any]:
    value = _parsed(data)
    if not isinstance(value, dict):
        raise TargetError("the answer is not what a JetLLM daemon sends", hint="check the URL")
    return value


def _error(answer: Any, status: int | None) -> TargetError:
    error = answer.get("error") if isinstance(answer, dict) else None
    if not isinstance(error, dict):
        return TargetError(f"the answer is HTTP status {status}", hint="check the URL: is it JetLLM's?")
    return TargetError(str(error.get("message")), hint=error.get("hint"), code=error.get("code"))
