"""A build that is killed, whenever, leaves a whole build or none, and nothing that a start does not sweep."""

from __future__ import annotations

import json
import os
import queue
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts import files
from inference.artifacts.build import STEPS
from inference.artifacts.build.records import read_build
from inference.artifacts.build.workshop import check_shards
from inference.artifacts.store import Store
from inference.backends._mlc_files import RECORD as VERIFIED
from inference.backends._mlc_files import open_model
from tests.build_program import key_of
from tests.conftest import DEADLINE_S, wait_until
from tests.mlc_checkpoints import make_gpt2

ROOT = Path(__file__).resolve().parent.parent
FAKE = ROOT / "tests" / "fake_mlc"
KILLS = 50
SEED = 20261121
_GONE_S = 2.0
# What stays below a store, whoever was killed: locks, the log of the last try, hashes that save a reading.
_MAY_STAY = ("locks", "logs", "hashes", "used", "builds")


class Program:
    """`tests.build_program`, and the events of its builders."""

    def __init__(self) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.build_program"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            bufsize=1,
            cwd=ROOT,
        )
        self._events: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._events.put(json.loads(line))

    def begin(self, task: dict[str, Any]) -> list[int]:
        """Begin a task; return the builders' pids."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        return [self.next("began")["pid"] for _ in range(task["builders"])]

    def next(self, *names: str, pid: int | None = None) -> dict[str, Any]:
        """Return the next event that has one of *names*, of one builder or of any."""
        while True:
            event = self._events.get(timeout=DEADLINE_S)
            if event["pid"] == (pid or event["pid"]) and event.keys() & set(names):
                return event

    def close(self) -> None:
        """End it: it does when nobody speaks to it."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.close()
        self._process.wait(DEADLINE_S)
        self._reader.join()
        self._process.stdout.close()


@pytest.fixture(scope="module")
def programs() -> Iterator[list[Program]]:
    """Two programs, one for each core that a small board has to spare."""
    started = [Program() for _ in range(2)]
    yield started
    for program in started:
        program.close()


class Yard:
    """A store, a checkpoint and a machine of its own, and a program that builds there."""

    def __init__(self, root: Path, program: Program) -> None:
        root.mkdir()
        self.root, self.store, self.program = root, root / "store", program
        self.checkpoint = make_gpt2(root / "checkpoint", prefixed=True)
        for name in ("tmp", "machine"):
            (root / name).mkdir()
        self.machine = root / "machine"
        (self.machine / "mlc_llm").symlink_to(FAKE / "mlc_llm")
        self.build = self.store / "builds" / key_of(self.checkpoint)
        self._before = _listing(self.checkpoint)
        self._pids: list[int] = []

    def script(self, **steps: Any) -> None:
        """Let steps misbehave; see `tests/fake_mlc/mlc_llm/build/script.py`."""
        (self.machine / "fake.json").write_text(json.dumps(steps))

    def begin(self, builders: int = 1, real: bool = False) -> int:
        """Begin a build; return the pid of the builder, of several the last one's."""
        path = os.pathsep.join((str(self.machine), str(ROOT)))
        task = {
            "builders": builders,
            "environment": {"PYTHONPATH": path, "TMPDIR": str(self.root / "tmp")},
            "store": str(self.store),
            "checkpoint": str(self.checkpoint),
            "real": real,
        }
        self._pids = self.program.begin(task)
        return self._pids[-1]

    def begins(self, step: str, pid: int) -> None:
        """Wait until the builder begins *step*."""
        while (event := self.program.next("step", "error", "built", pid=pid)).get("step") != step:
            assert "step" in event, event

    def run(self) -> None:
        """Build to the end."""
        pid = self.begin()
        result = self.program.next("built", "error", pid=pid)
        assert result.get("built") == self.build.name, result
        assert self.program.next("ended", pid=pid)["ended"] == 0
        self._pids = []

    def events(self) -> list[dict[str, Any]]:
        """Return what all builders tell until the last one ends."""
        events: list[dict[str, Any]] = []
        while sum("ended" in event for event in events) < len(self._pids):
            events.append(self.program.next("step", "built", "error", "ended"))
        self._pids = []
        return events

    def kill(self) -> None:
        """Kill the builders, and wait until they are reaped; the program may have done that already."""
        for pid in self._pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            assert self.program.next("ended", pid=pid)["ended"] in (-signal.SIGKILL, 0)
        self._pids = []

    def check(self) -> bool:
        """Check what a kill has left, and what a start leaves of that; return whether the build stands."""
        wait_until(lambda: not self.processes(), "the end of every process", _GONE_S)
        stands = self.build.exists()
        if stands:
            self._check_build()
        # A step that was being started holds the lock too, for the moment until it is another program.
        wait_until(lambda: not self._leftovers(), "a clean store", _GONE_S)
        assert [path.name for path in files.entries(self.build.parent)] == [self.build.name] * stands
        assert files.entries(self.store / "staging") == []
        assert _listing(self.checkpoint) == self._before
        return stands

    def _leftovers(self) -> list[Path]:
        """Sweep, and return what should have gone."""
        Store(self.store).sweep()
        left = [path.relative_to(self.store) for path in self.store.rglob("*") if path.is_file()]
        return [p for p in left if p.parts[0] not in _MAY_STAY or p.name.startswith(files.TEMPORARY_PREFIX)]

    def _check_build(self) -> None:
        found = read_build(self.build)
        assert found is not None and found.is_whole and found.key == self.build.name
        assert [step.name for step in found.steps] == [step for step in STEPS if step != "publish"]
        assert check_shards(self.build) == found.parameters_bytes > 0
        runtime = self.root / f"run{time.monotonic_ns()}"
        runtime.mkdir()
        open_model(self.build, runtime)
        (self.build / VERIFIED).unlink(missing_ok=True)

    def processes(self) -> list[int]:
        """Return who was started with this yard's machine in its environment: steps and workers."""
        mark = os.fsencode(self.machine)
        found = []
        for path in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if mark in (path / "environ").read_bytes():
                    found.append(int(path.name))
        return found


@pytest.fixture
def make_yard(tmp_path: Path, programs: list[Program]) -> Iterator[Callable[[], Yard]]:
    """Make yards, one for each program; what builds there at the end is killed."""
    made: list[Yard] = []

    def make() -> Yard:
        made.append(Yard(tmp_path / f"yard{len(made)}", programs[len(made)]))
        return made[-1]

    yield make
    for yard in made:
        yard.kill()
        for pid in yard.processes():  # there are none, unless the test has failed
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@pytest.fixture
def yard(make_yard: Callable[[], Yard]) -> Yard:
    """A yard."""
    return make_yard()


def _listing(directory: Path) -> list[tuple[str, int, int]]:
    return [(path.name, path.stat().st_size, path.stat().st_mtime_ns) for path in sorted(directory.iterdir())]


@pytest.mark.parametrize("step", STEPS)
def test_killed_as_a_step_begins(step: str, yard: Yard) -> None:
    """Before the last step is done there is no build; the next start builds it."""
    yard.begins(step, yard.begin())
    yard.kill()
    assert not yard.check() or step == "publish"  # which may have been quicker than the signal
    yard.run()
    assert yard.check()


@pytest.mark.parametrize(
    ("step", "written"),
    [("gen_config", "mlc-chat-config.json"), ("convert_weight", "params_shard_0.bin"), ("compile", "lib.so")],
)
def test_killed_with_a_file_half_written(step: str, written: str, yard: Yard) -> None:
    """What a step had half written when it was killed, deaf children included, is never found again."""
    yard.script(**{step: {"at": "middle", "hang": True, "ignore_sigterm": True, "grandchild": True}})
    yard.begin()
    wait_until(lambda: list(yard.store.glob(f"staging/*/model/{written}")), "half a file")
    wait_until(lambda: len(yard.processes()) == 2, "the step and its child")
    yard.kill()
    assert not yard.check()
    yard.script()
    yard.run()
    assert yard.check()


def test_killed_while_a_worker_tries_the_build(yard: Yard) -> None:
    """The worker of the last step ends with the builder, although it hangs in loading."""
    yard.script(engine={"load": "silent"})
    yard.begins("verify", yard.begin(real=True))
    wait_until(yard.processes, "the worker")
    yard.kill()
    assert not yard.check()


def test_killed_at_any_moment(make_yard: Callable[[], Yard]) -> None:
    """Of 50 kills, spread evenly over a build and a little beyond, none leaves a part of one."""
    yards = [make_yard(), make_yard()]
    with ThreadPoolExecutor(len(yards)) as pool:
        length_s = max(pool.map(_length_s, yards))
        rng = random.Random(SEED)  # noqa: S311 - the same moments each time, as far as the machine allows
        moments = [(number + rng.random()) / KILLS * 1.1 * length_s for number in range(KILLS)]
        stood = list(pool.map(_killed_after, yards, (moments[0::2], moments[1::2])))
    assert len([*stood[0], *stood[1]]) == KILLS
    assert sum(map(sum, stood)) < KILLS // 2, "hardly a build was killed"
    for yard in yards:
        yard.run()
        assert yard.check()


def _length_s(yard: Yard) -> float:
    """Build once, and take it away."""
    started_s = time.monotonic()
    yard.run()
    length_s = time.monotonic() - started_s
    assert yard.check()
    files.remove(yard.build)
    return length_s


def _killed_after(yard: Yard, moments: list[float]) -> list[bool]:
    stood = []
    for moment_s in moments:
        yard.begin()
        threading.Event().wait(moment_s)
        yard.kill()
        stood.append(yard.check())
        files.remove(yard.build)
    return stood


def test_eight_at_once_build_once(yard: Yard) -> None:
    """Of eight processes that ask for the same at once, one builds, and all have its build."""
    yard.begin(builders=8)
    events = yard.events()
    results = [event for event in events if event.keys() & {"built", "error"}]
    assert [result.get("built") for result in results] == [yard.build.name] * 8, results
    assert len({result["created_s"] for result in results}) == 1
    assert len([event for event in events if event.get("step") == "compile"]) == 1
    assert yard.check()


def test_a_start_sweeps_what_was_being_written_down(yard: Yard) -> None:
    """A record or hash that was half written when the process was killed goes, too."""
    yard.run()
    for name in ("hashes", "failed", "builds"):
        (yard.store / name).mkdir(exist_ok=True)
        (yard.store / name / f"{files.TEMPORARY_PREFIX}abc").write_text("{")
    assert yard.check()
