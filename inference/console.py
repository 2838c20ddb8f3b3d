"""What the command line shows: progress bars, tables, sizes; colour and bars only on a terminal."""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inference.artifacts.build import BuildProgress
    from inference.artifacts.sources import Progress
    from inference.bench import BenchProgress

_LOAD_POLL_S = 0.1
_NOTE_S = 10.0
_PHASES = {
    "wait": "waiting for another download",
    "download": "downloading",
    "copy": "unpacking",
    "pack": "packing",
    "check": "checking",
}


def print_json(value: Any) -> None:
    """Print one JSON value."""
    print_line(json.dumps(value, indent=2, default=str))


def print_line(text: str = "", *, end: str = "\n") -> None:
    """Print to standard output at once, so that a pipe sees tokens as they come."""
    sys.stdout.write(text + end)
    sys.stdout.flush()


def print_note(text: str) -> None:
    """Print to standard error, where it does not mix with data."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def print_table(headers: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    """Print columns; ``None`` is shown as "-"."""
    from rich.console import Console
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in headers:
        table.add_column(header, overflow="fold")
    for row in rows:
        table.add_row(*("-" if cell is None else str(cell) for cell in row))
    width = None if sys.stdout.isatty() else 160
    Console(width=width, highlight=False).print(table)


def styled(text: str, colour: str) -> str:
    """Return *text* in *colour* where standard output is a terminal that may have colours."""
    from rich.console import Console

    console = Console(highlight=False)
    with console.capture() as capture:
        console.print(text, style=colour, end="", soft_wrap=True)
    return str(capture.get())


def gib(count: float | None) -> str | None:
    """A size in GiB."""
    return None if count is None else f"{count / 2**30:.2f} GiB"


def duration(seconds: float) -> str:
    """A time in its two largest units, such as "2 h 5 min"."""
    parts = [(86_400, "d"), (3600, "h"), (60, "min"), (1, "s")]
    left = int(seconds)
    shown: list[str] = []
    for size, unit in parts:
        count, left = divmod(left, size)
        if count or (shown and len(shown) < 2) or (unit == "s" and not shown):
            shown.append(f"{count} {unit}")
    return " ".join(shown[:2])


@contextmanager
def download_bar(name: str) -> Iterator[Callable[[Progress], None]]:
    """Yield a function that shows a fetch's progress: a bar on a terminal, else a line per phase and 10 s."""
    if not sys.stderr.isatty():
        seen: set[str] = set()
        next_s = 0.0

        def note(progress: Progress) -> None:
            nonlocal next_s
            if progress.phase in seen and time.monotonic() < next_s:
                return
            next_s = time.monotonic() + _NOTE_S
            size = f" {progress.total_bytes / 1e6:.0f} MB" if progress.total_bytes else ""
            if progress.phase in seen:
                size = f" {_so_far(progress)}"
            seen.add(progress.phase)
            print_note(f"{name}: {_PHASES.get(progress.phase, progress.phase)}{size}")

        yield note
        return
    with _bars(transfer=True) as bars:
        task = bars.add_task(name, total=None)

        def show(progress: Progress) -> None:
            label = f"{name}: {_PHASES.get(progress.phase, progress.phase)}"
            bars.update(task, description=label, completed=progress.done_bytes, total=progress.total_bytes)

        yield show


def _so_far(progress: Progress) -> str:
    of = f" of {progress.total_bytes / 1e6:.0f}" if progress.total_bytes else ""
    rate = f", {progress.rate_bytes_per_s / 1e6:.1f} MB/s" if progress.rate_bytes_per_s else ""
    left = f", {progress.eta_s:.0f} s left" if progress.eta_s is not None else ""
    return f"{progress.done_bytes / 1e6:.0f}{of} MB{rate}{left}"


@contextmanager
def build_bar(name: str) -> Iterator[Callable[[BuildProgress], None]]:
    """Yield a function that shows a build's progress: a bar on a terminal, else a line per step."""
    if not sys.stderr.isatty():
        seen: set[tuple[str, str]] = set()

        def note(progress: BuildProgress) -> None:
            if (progress.quantization, progress.step) not in seen:
                seen.add((progress.quantization, progress.step))
                print_note(f"{name}: {_step_label(progress)}")

        yield note
        return
    with _bars(transfer=False) as bars:
        task = bars.add_task(name, total=1.0)

        def show(progress: BuildProgress) -> None:
            left_s = progress.left_s
            done = None if left_s is None else progress.elapsed_s / max(0.001, progress.elapsed_s + left_s)
            left = "" if left_s is None else f", about {left_s:.0f} s left"
            bars.update(task, description=f"{name}: {_step_label(progress)}{left}", completed=done or 0.0)

        yield show


@contextmanager
def bench_bar(name: str, runs: int) -> Iterator[Callable[[BenchProgress], None]]:
    """Yield a function that shows a bench's rounds: a bar on a terminal, else a line per round."""

    def label(progress: BenchProgress) -> str:
        rate = progress.decode_tokens_per_s
        return f"{name}: round {progress.run} of {progress.runs}{f', {rate:.1f} tokens/s' if rate else ''}"

    if not sys.stderr.isatty():
        print_note(f"{name}: measuring")
        yield lambda progress: print_note(label(progress))
        return
    with _bars(transfer=False) as bars:
        task = bars.add_task(f"{name}: measuring", total=float(runs))
        yield lambda progress: bars.update(task, description=label(progress), completed=progress.run)


@contextmanager
def hashing_bar() -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function that shows what is being hashed, and how many bytes of how many are done."""
    with _bars(transfer=True) as bars:
        task = bars.add_task("", total=None, visible=False)

        def show(name: str, done_bytes: int, total_bytes: int) -> None:
            unfinished = done_bytes < total_bytes
            bars.update(
                task,
                description=f"{name}: checking",
                completed=done_bytes,
                total=total_bytes,
                visible=unfinished,
            )

        yield show


def _step_label(progress: BuildProgress) -> str:
    if not progress.number:
        return "waiting for another build of the same"
    return f"{progress.quantization} {progress.number}/{progress.steps} {progress.step}"


@contextmanager
def loading_bar(name: str, fraction: Callable[[], float | None]) -> Iterator[None]:
    """Show a bar that follows *fraction* (0 to 1, an estimate) until the block ends."""
    if not sys.stderr.isatty():
        print_note(f"{name}: loading")
        yield
        return
    done = threading.Event()
    with _bars(transfer=False) as bars:
        task = bars.add_task(f"{name}: loading", total=1.0)

        def follow() -> None:
            while not done.wait(_LOAD_POLL_S):
                bars.update(task, completed=fraction() or 0.0)

        thread = threading.Thread(target=follow, name="loading-bar", daemon=True)
        thread.start()
        try:
            yield
            bars.update(task, completed=1.0)
        finally:
            done.set()
            thread.join()


def _bars(*, transfer: bool) -> Any:
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )

    columns: list[Any] = [TextColumn("{task.description}")]
    if transfer:  # short enough for a terminal of 80 columns
        columns += [BarColumn(10), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn()]
    else:
        columns += [BarColumn(), TaskProgressColumn()]
    return Progress(*columns, console=Console(stderr=True))
