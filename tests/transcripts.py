"""Transcripts of curl in a page: what is typed, what is shown to come, and whether what came is like it."""

from __future__ import annotations

import http.client
import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

# Texts that a model writes and what is new each time; everything else is as it is shown. Numbers vary
# too, except those that are told here.
VARYING = {
    *("id", "created", "content", "text", "tokens", "top_logprobs", "text_offset", "arguments"),
    *("system_fingerprint", "request_id", "reason"),
    *("response", "created_at", "modified_at", "expires_at", "template"),
}
EXACT = {"index", "dropped_turns", "code"}
_LINES = re.compile(r"\{.*\}\n(\{|\.\.\.)")  # of JSON, each an object, as Ollama streams


@dataclass(frozen=True)
class Transcript:
    """A command and what it is shown to print."""

    command: str
    shown: str


def transcripts(page: str) -> list[Transcript]:
    """The console blocks of *page*: a line that begins with "$ ", further ones, then the answer."""
    blocks = re.findall(r"^```console\n\$ (.*?)^```", page, re.MULTILINE | re.DOTALL)
    found = []
    for block in blocks:
        end = re.search(r"^(?=HTTP/|\{|\[|data: )", block, re.MULTILINE)
        assert end is not None, f"no answer is shown: {block[:80]}"
        found.append(Transcript(block[: end.start()], block[end.start() :].rstrip("\n")))
    return found


def played(command: str, port: int) -> str:
    """Send what a curl *command* would send to *port*; return what curl would print."""
    words = shlex.split(command.replace("\\\n", " "))
    assert words[0] == "curl"
    headers = dict(words[at + 1].split(": ", 1) for at, word in enumerate(words) if word == "-H")
    body = words[words.index("-d") + 1] if "-d" in words else None
    url = urlsplit(next(word for word in words if word.startswith("http://")))
    method = words[words.index("-X") + 1] if "-X" in words else "GET" if body is None else "POST"
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=120)
    try:
        connection.request(method, f"{url.path}?{url.query}" if url.query else url.path, body, headers)
        response = connection.getresponse()
        text = response.read().decode()
    finally:
        connection.close()
    if "-i" not in words:
        return text
    return f"HTTP/1.1 {response.status} {response.reason}\n{response.headers}{text}"


def differences(shown: str, found: str) -> Iterator[str]:
    """Say where an answer is not like the one that is shown; of the headers only those shown count."""
    head, shown_body = _parted(shown)
    came, body = _parted(found)
    lines = [line.lower() for line in came]
    for line in head:
        if not any(re.fullmatch(_pattern(line.lower()), other) for other in lines):
            yield f"no header is like {line!r}: {came}"
    if shown_body.startswith("data: "):
        yield from _unlike_events(shown_body, body)
    elif _LINES.match(shown_body):
        yield from _unlike_events(
            *(re.sub(r"^(?=\{)", "data: ", text, flags=re.M) for text in (shown_body, body))
        )
    else:
        yield from unlike(json.loads(shown_body), json.loads(body), "answer")


def unlike(shown: Any, found: Any, path: str, key: str = "") -> Iterator[str]:
    """Say where a JSON value is not like the one that is shown; "..." stands for any text."""
    if key in VARYING and type(shown) is type(found):
        return
    if isinstance(shown, dict) and isinstance(found, dict):
        if set(shown) != set(found):
            yield f"{path}: {sorted(found)}, shown are {sorted(shown)}"
        for name in shown.keys() & found.keys():
            yield from unlike(shown[name], found[name], f"{path}.{name}", name)
    elif isinstance(shown, list) and isinstance(found, list):
        if len(shown) != len(found):
            yield f"{path}: {len(found)} items, shown are {len(shown)}"
        for at, (one, other) in enumerate(zip(shown, found, strict=False)):
            yield from unlike(one, other, f"{path}[{at}]")
    elif not _alike(shown, found, key):
        yield f"{path}: {found!r}, shown is {shown!r}"


def _alike(shown: Any, found: Any, key: str) -> bool:
    if isinstance(shown, str) and isinstance(found, str):
        return re.fullmatch(_pattern(shown), found) is not None
    numbers = all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in (shown, found))
    if numbers and key not in EXACT:
        return True
    return type(shown) is type(found) and bool(shown == found)


def _unlike_events(shown: str, found: str) -> Iterator[str]:
    """Compare events in their order; a line "..." stands for any number of them."""
    came = [line.removeprefix("data: ") for line in found.splitlines() if line.startswith("data: ")]
    lines = [line for line in shown.splitlines() if line]
    until, after = lines, []
    if "..." in lines:
        gap = lines.index("...")
        until, after = lines[:gap], lines[gap + 1 :]
    elif len(lines) != len(came):
        yield f"{len(came)} events, shown are {len(lines)}"
    pairs = [*zip(until, came, strict=False), *zip(after, came[len(came) - len(after) :], strict=True)]
    for line, event in pairs:
        text = line.removeprefix("data: ")
        if "[DONE]" in (text, event):
            yield from [] if text == event else [f"{event!r}, shown is {text!r}"]
        else:
            yield from unlike(json.loads(text), json.loads(event), "event")


def _parted(text: str) -> tuple[list[str], str]:
    if not text.startswith("HTTP/"):
        return [], text
    head, _, body = text.replace("\r\n", "\n").partition("\n\n")
    return head.splitlines(), body


def _pattern(text: str) -> str:
    return ".*".join(re.escape(part) for part in text.split("..."))
