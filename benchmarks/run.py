"""`make bench`: the targets of the serving path, measured on this machine, as a Markdown section.

The bare engine and the daemon run the same GGUF with the same options on the same machine in one
run, taking turns, so that a slow minute hits both.
"""

from __future__ import annotations

import datetime
import json
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import xllamacpp

from benchmarks.clients import BareEngine, HttpClient, total_tokens_per_s
from inference.artifacts.store import Store
from inference.device.detect import detect
from inference.registry import load_registry
from inference.settings import load_settings
from tests.daemon_process import DaemonProcess

SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
PROMPTS = [f"Write a long story about the {thing}." for thing in ("sea", "moon", "road", "fire")]
TOKENS = 128
MIB = 2**20


def main() -> None:
    """Measure everything and print the section for docs/bench-log.md."""
    rows: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory() as directory:
        for measure in (decode_and_ttft, start, leave, swap, cycles):
            rows += measure(Path(directory))
            sys.stderr.write(f"{measure.__name__}: done\n")
    print(section(rows))


def weights(model: str) -> Path:
    """Where the model's GGUF is."""
    settings = load_settings()
    variant = next(iter(load_registry(settings.registry_path).models[model].variants.values()))
    path = Store(settings.cache_path).path_of(model, variant)
    if path is None:
        raise SystemExit(f"first: jetllm pull {model}")
    return path


def wait(condition: Callable[[], object]) -> None:
    """Poll until it holds; 30 s at most."""
    end_s = time.monotonic() + 30
    while not condition():
        if time.monotonic() > end_s:
            raise SystemExit("a step of the benchmark did not end in 30 s")
        time.sleep(0.002)


def verdict(value: float, limit: float, *, at_least: bool = False) -> str:
    """Met or missed."""
    return "met" if (value >= limit if at_least else value <= limit) else "**missed**"


def decode_and_ttft(directory: Path) -> list[tuple[str, str, str, str]]:
    """Decode rate and time to first token: bare engine against HTTP, in turns."""
    settings = load_settings()
    options = {
        "weights": str(weights(SMOLLM2)),
        "context_tokens": settings.context_tokens,
        "slots": settings.slots,
        "threads": settings.threads,
        "prefill_batch_tokens": settings.prefill_batch_tokens,
        "prompt_cache_bytes": settings.prompt_cache_bytes,
    }
    with BareEngine(options) as bare, DaemonProcess(directory / "a", "--preload", SMOLLM2) as daemon:
        wait(lambda: daemon.ask("GET", "/readyz")[0] == 200)
        http = HttpClient(daemon.port, SMOLLM2)
        one: dict[str, list[float]] = {"bare": [], "http": []}
        four: dict[str, list[float]] = {"bare": [], "http": []}
        first: dict[str, list[float]] = {"bare": [], "http": []}
        for turn in range(8):
            for name, way in (("bare", bare), ("http", http)):
                single = way.run(PROMPTS[:1], TOKENS)
                many = way.run(PROMPTS, TOKENS)
                quick = [way.run(["Hi"], 2)[0].ttft_s for _ in range(5)]
                if turn:  # the first turn warms up
                    one[name].append(single[0].decode_tokens_per_s)
                    four[name].append(total_tokens_per_s(many))
                    first[name] += quick
    rows = []
    for label, values, limit in (("1 stream", one, 0.97), ("4 streams", four, 0.95)):
        bare_rate, http_rate = (statistics.median(values[name]) for name in ("bare", "http"))
        share = http_rate / bare_rate
        measured = f"{http_rate:.1f} of {bare_rate:.1f} tokens/s = {share:.1%}"
        rows.append(
            (
                f"decode through HTTP, {label}",
                f">= {limit:.0%}",
                measured,
                verdict(share, limit, at_least=True),
            )
        )
    bare_s, http_s = (statistics.median(first[name]) for name in ("bare", "http"))
    extra_ms = (http_s - bare_s) * 1000
    rows.append(
        (
            "TTFT through HTTP",
            "<= +5 ms",
            f"{http_s * 1000:.1f} against {bare_s * 1000:.1f} ms = {extra_ms:+.1f} ms",
            verdict(extra_ms, 5),
        )
    )
    return rows


def start(directory: Path) -> list[tuple[str, str, str, str]]:
    """A daemon without a worker; and from nothing to the first token."""
    live_s, resident, token_s = [], [], []
    for n in range(5):
        with DaemonProcess(directory / f"idle{n}") as daemon:
            daemon.ask("GET", "/livez")
            live_s.append(time.monotonic() - daemon.started_s)
            for path in ("/v1/models", "/metrics", "/jetllm/v1/status"):
                daemon.ask("GET", path)
            resident.append(psutil.Process(daemon.pid).memory_info().rss / MIB)
        with DaemonProcess(directory / f"cold{n}") as daemon:
            stream = HttpClient(daemon.port, SMOLLM2).run(["Hi"], 2)[0]
            token_s.append(stream.first_s - daemon.started_s)
    live, rss, token = (statistics.median(values) for values in (live_s, resident, token_s))
    return [
        (
            "daemon without a worker, resident",
            "<= 64 MB",
            f"{rss * MIB / 1e6:.1f} MB ({rss:.1f} MiB)",
            verdict(rss * MIB / 1e6, 64),
        ),
        ("daemon live after its start", "<= 1 s", f"{live:.2f} s", verdict(live, 1)),
        ("cold start to the first token, SmolLM2", "<= 3 s", f"{token:.2f} s", verdict(token, 3)),
    ]


def leave(directory: Path) -> list[tuple[str, str, str, str]]:
    """How long a slot stays busy after its client has left."""
    rows = []
    with DaemonProcess(directory / "leave", "--preload", SMOLLM2) as daemon:
        wait(lambda: daemon.ask("GET", "/readyz")[0] == 200)
        for phase, streaming in (("prefill", True), ("prefill", False), ("decode", True), ("decode", False)):
            times = [_leave_once(daemon, phase, streaming) for _ in range(5)]
            worst = max(times)
            label = f"client leaves in {phase}{'' if streaming else ', not streaming'}: slot free"
            rows.append(
                (
                    label,
                    "<= 0.5 s",
                    f"{statistics.median(times):.2f} s, at most {worst:.2f} s",
                    verdict(worst, 0.5),
                )
            )
    return rows


def _leave_once(daemon: DaemonProcess, phase: str, streaming: bool) -> float:
    text = ("word " * 3000 if phase == "prefill" else "A story ") + os.urandom(4).hex()
    body = {
        "model": SMOLLM2,
        "prompt": text,
        "max_tokens": 900,
        "ignore_eos": True,
        "stream": streaming,
        "cache_prompt": False,
    }
    data = json.dumps(body).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    with socket.create_connection(("127.0.0.1", daemon.port)) as client:
        client.sendall(b"%sContent-Length: %d\r\n\r\n%s" % (head, len(data), data))
        wait(lambda: _running(daemon) == 1)
        time.sleep(0.5 + int.from_bytes(os.urandom(1), "big") / 1000)
    left_s = time.monotonic()
    wait(lambda: _running(daemon) == 0)
    return time.monotonic() - left_s


def _running(daemon: DaemonProcess) -> int:
    count: int = daemon.ask("GET", "/jetllm/v1/status")[1]["queue"]["running"]
    return count


def swap(directory: Path) -> list[tuple[str, str, str, str]]:
    """What a swap costs beyond loading the other model."""
    settings = {"max_loaded_models": 1, "min_residency_s": 0}
    extra: list[float] = []
    with DaemonProcess(directory / "swap", **settings) as daemon:
        for n in range(10):
            model = (SMOLLM2, GEMMA)[n % 2]
            stream = HttpClient(daemon.port, model).run(["Hi"], 2)[0]
            again = HttpClient(daemon.port, model).run(["Hi"], 2)[0]
            load_s = daemon.workers()[0]["load_s"]
            if n:
                extra.append(stream.ttft_s - again.ttft_s - load_s)
    value = statistics.median(extra)
    return [
        (
            "swap between SmolLM2 and Gemma, beyond the raw load",
            "<= 0.3 s",
            f"{value:.2f} s, at most {max(extra):.2f} s",
            verdict(value, 0.3),
        )
    ]


def cycles(directory: Path) -> list[tuple[str, str, str, str]]:
    """100 load/unload cycles: what stays behind in the daemon."""
    with DaemonProcess(directory / "cycles") as daemon:
        process = psutil.Process(daemon.pid)
        for _ in range(10):
            _cycle(daemon)
        before = _holdings(process)
        for _ in range(100):
            _cycle(daemon)
        after = _holdings(process)
    grown = (after[0] - before[0]) / 1e6
    left = f"{after[1] - before[1]:+d} descriptors, {after[2] - before[2]:+d} threads, {after[3]} processes"
    clean = after[1] <= before[1] and after[2] <= before[2] and after[3] == 0
    return [
        ("100 load/unload cycles: the daemon's growth", "<= 2 MB", f"{grown:+.2f} MB", verdict(grown, 2)),
        ("100 load/unload cycles: left behind", "nothing", left, "met" if clean else "**missed**"),
    ]


def _cycle(daemon: DaemonProcess) -> None:
    for action in ("load", "unload"):
        status, answer = daemon.ask("POST", f"/jetllm/v1/models/{action}", {"model": SMOLLM2})
        if status != 200:
            raise SystemExit(f"{action}: {answer}")


def _holdings(process: psutil.Process) -> tuple[int, int, int, int]:
    rss = process.memory_info().rss
    return rss, process.num_fds(), process.num_threads(), len(process.children(recursive=True))


def section(rows: list[tuple[str, str, str, str]]) -> str:
    """The Markdown section, verdict in its title."""
    missed = sum("missed" in row[3] for row in rows)
    title = "all targets met" if not missed else f"{missed} of {len(rows)} targets missed"
    device: Any = detect()
    memory = (device.memory_total_bytes or 0) / 2**30
    lines = [
        f"## {datetime.date.today().isoformat()}: the serving path, {title}",
        "",
        f"Machine: {device.cpu_model}, {device.cpu_cores} cores, {memory:.0f} GiB, "
        f"Linux {platform.release()}; "
        f"Python {platform.python_version()}, xllamacpp {xllamacpp.__version__}; "
        f"threads of the engine: {load_settings().threads or 'all cores'}. Command: `make bench`.",
        "",
        "| what | target | measured | verdict |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
