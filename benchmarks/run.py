"""`make bench`: the targets of the serving path, measured on this machine, as a Markdown section.

The bare engine and the daemon run the same GGUF with the same options on the same machine in one
run, taking turns, so that a slow minute hits both.
"""

from __future__ import annotations

import datetime
import json
import math
import os
import platform
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import psutil
import xllamacpp

from benchmarks.clients import BareEngine, HttpClient, total_tokens_per_s
from benchmarks.idle_clients import idle_clients
from inference.artifacts.store import Store
from inference.device.detect import detect
from inference.registry import load_registry
from inference.selection.estimate import prefill_batch
from inference.settings import load_settings
from tests.daemon_process import DaemonProcess

SMOLLM2, GEMMA = "smollm2-135m-instruct", "gemma-3-270m"
PROMPTS = [f"Write a long story about the {thing}." for thing in ("sea", "moon", "road", "fire")]
TOKENS, TURNS, ROUNDS, NOISE_ROUNDS = 96, 2, 16, 6
Turn = tuple[float, float, float]
"""Decode rate of 1 and of 4 streams, tokens/s, and the time to the first token, s."""
MIB = 2**20


def main() -> None:
    """Measure everything and print the section for docs/bench-log.md."""
    rows: list[tuple[str, str, str, str]] = []
    with tempfile.TemporaryDirectory() as directory:
        for measure in (decode_and_ttft, start, idle_clients, leave, swap, cycles):
            rows += measure(Path(directory))
            sys.stderr.write(f"{measure.__name__}: done\n")
    print(section(rows))


def weights(model: str) -> Path:
    """Where the model's GGUF is."""
    settings = load_settings()
    variants = load_registry(settings.registry_path).models[model].variants.values()
    variant = next(variant for variant in variants if variant.backend == "llamacpp")
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


def engine_options() -> dict[str, Any]:
    """What both ways run, from the settings."""
    settings = load_settings()
    return {
        "weights": str(weights(SMOLLM2)),
        "context_tokens": settings.context_tokens,
        "slots": settings.slots,
        "threads": settings.threads,
        "prefill_batch_tokens": prefill_batch("llamacpp", settings.prefill_batch_tokens),
        "prompt_cache_bytes": settings.prompt_cache_bytes,
    }


def decode_and_ttft(directory: Path) -> list[tuple[str, str, str, str]]:
    """Decode rate and time to first token: bare engine against HTTP, and against itself for the noise.

    A round is a pair of new processes: two of the same kind differ by more than the two ways do. Rates are
    compared within a turn, so that a slow minute hits both, and the ratios' geometric mean is taken.
    """
    against_http = [_round_of_http(directory / f"round{n}", daemon_first=n % 2 == 1) for n in range(ROUNDS)]
    against_itself = [_round_of_bare() for _ in range(NOISE_ROUNDS)]
    rows = []
    for index, (label, limit) in enumerate((("1 stream", 0.97), ("4 streams", 0.95))):
        share, error = _share(against_http, index)
        noise, noise_error = _share(against_itself, index)
        rates = [
            statistics.median(pair[side][index] for turns in against_http for pair in turns)
            for side in (0, 1)
        ]
        found = (
            f"{rates[1]:.1f} of {rates[0]:.1f} tokens/s; share {share:.1%}, standard error {error:.1%}, "
            f"of {ROUNDS} rounds (bare against bare: {noise:.1%}, standard error {noise_error:.1%})"
        )
        verdict_ = verdict(share, limit, at_least=True)
        rows.append((f"decode through HTTP, {label}", f">= {limit:.0%}", found, verdict_))
    extra_ms, bare_ms = _extra_ms(against_http)
    noise_ms, _ = _extra_ms(against_itself)
    found = f"{extra_ms:+.1f} ms on {bare_ms:.1f} ms (bare against bare: {noise_ms:+.1f} ms)"
    return [*rows, ("TTFT through HTTP", "<= +5 ms", found, verdict(extra_ms, 5))]


def _share(rounds: list[list[tuple[Turn, Turn]]], index: int) -> tuple[float, float]:
    """The second way's part of the first's rate, and its standard error over the rounds."""
    logs = [statistics.mean(math.log(b[index] / a[index]) for a, b in turns) for turns in rounds]
    share = math.exp(statistics.mean(logs))
    return share, share * statistics.stdev(logs) / math.sqrt(len(logs))


def _extra_ms(rounds: list[list[tuple[Turn, Turn]]]) -> tuple[float, float]:
    """What the second way's TTFT has more than the first's, the median of all turns, and the first's."""
    pairs = [pair for turns in rounds for pair in turns]
    extra_s = statistics.median(b[2] - a[2] for a, b in pairs)
    return extra_s * 1000, statistics.median(a[2] for a, _ in pairs) * 1000


def _round_of_http(directory: Path, *, daemon_first: bool) -> list[tuple[Turn, Turn]]:
    """Which one starts first changes from round to round."""
    daemon = DaemonProcess(directory, "--preload", SMOLLM2)
    with ExitStack() as stack:
        if daemon_first:
            stack.enter_context(daemon)
            wait(lambda: daemon.ask("GET", "/readyz")[0] == 200)
        bare = stack.enter_context(BareEngine(engine_options()))
        if not daemon_first:
            stack.enter_context(daemon)
            wait(lambda: daemon.ask("GET", "/readyz")[0] == 200)
        return _in_turns(bare, HttpClient(daemon.port, SMOLLM2))


def _round_of_bare() -> list[tuple[Turn, Turn]]:
    with BareEngine(engine_options()) as first, BareEngine(engine_options()) as second:
        return _in_turns(first, second)


def _in_turns(first: BareEngine, second: BareEngine | HttpClient) -> list[tuple[Turn, Turn]]:
    """Both ways, one after the other, `TURNS` times; which one goes first changes from turn to turn."""
    turns = []
    for turn in range(TURNS + 1):
        if turn % 2:
            ahead = _turn(first)
            pair = (ahead, _turn(second))
        else:
            ahead = _turn(second)
            pair = (_turn(first), ahead)
        turns.append(pair)
    return turns[1:]  # the first turn warms up


def _turn(way: BareEngine | HttpClient) -> Turn:
    single, many = way.run(PROMPTS[:1], TOKENS), way.run(PROMPTS, TOKENS)
    ttft_s = statistics.median(way.run(["Hi"], 2)[0].ttft_s for _ in range(5))
    return single[0].decode_tokens_per_s, total_tokens_per_s(many), ttft_s


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
        with ThreadPoolExecutor(8) as pool:  # as many HTTP threads as there will ever be
            list(pool.map(lambda _: daemon.ask("GET", "/jetllm/v1/models"), range(64)))
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
        f"threads of the engine: {load_settings().threads or 'the default'}. Command: `make bench`.",
        "",
        "| what | target | measured | verdict |",
        "| --- | --- | --- | --- |",
        *(f"| {' | '.join(row)} |" for row in rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
