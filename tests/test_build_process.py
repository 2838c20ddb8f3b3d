"""A build step's process: its limits, its output, and its end, however that comes."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from inference.artifacts.build import step_log
from inference.artifacts.build.process import (
    Budget,
    StepFailedError,
    StepKilledError,
    StepMemoryError,
    StepStalledError,
    StepStarvedError,
    Usage,
    run_step,
)
from inference.errors import BuildFailedError, CancelledError
from tests.conftest import wait_until

ROOT = Path(__file__).resolve().parent.parent
FREE = Budget(memory_bytes=None, time_s=60.0, stall_s=60.0)
SPIN = "while True: pass\n"
WAIT = "import threading\nthreading.Event().wait()\n"
# Starts a grandchild that waits, writes its number into a file, and goes on.
BEAR = """
import subprocess, sys, pathlib
child = subprocess.Popen([sys.executable, "-c", "import threading; threading.Event().wait()"], {options})
part = pathlib.Path("grandchild.part")
part.write_text(str(child.pid))
part.rename("grandchild")
"""


class Steps:
    """Runs programs as steps."""

    def __init__(self, directory: Path) -> None:
        self.cwd = directory / "cwd"
        self.modules = directory / "modules"
        self.log = directory / "log"
        self.cwd.mkdir()
        self.modules.mkdir()

    def run(self, source: str, *arguments: str, **options: Any) -> Usage:
        """Run *source* as the module "program"."""
        (self.modules / "program.py").write_text(source)
        given: dict[str, Any] = {
            "log": self.log,
            "cwd": self.cwd,
            "environment": {"PYTHONPATH": str(self.modules), "PATH": os.defpath},
            "budget": FREE,
            "cancelled": lambda: False,
        }
        return run_step("convert", "program", arguments, **{**given, **options})

    @property
    def text(self) -> str:
        """What the log says."""
        return self.log.read_text(errors="replace")

    @property
    def grandchild(self) -> int | None:
        """The number of the process that `BEAR` started."""
        with contextlib.suppress(FileNotFoundError):
            return int((self.cwd / "grandchild").read_text())
        return None


@pytest.fixture
def steps(tmp_path: Path) -> Steps:
    return Steps(tmp_path)


def is_gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_runs_the_module_with_its_arguments_in_its_directory(steps: Steps) -> None:
    """The module sees itself as a program, its arguments, its directory and an empty standard input."""
    steps.run(
        "import sys, os, json\nassert __name__ == '__main__'\n"
        "print(json.dumps([sys.argv[1:], os.getcwd(), sys.stdin.read()]))",
        "gen_config",
        "--x y",
    )
    assert json.loads(steps.text) == [["gen_config", "--x y"], str(steps.cwd), ""]


def test_tells_what_a_step_took(steps: Steps) -> None:
    """Usage has the wall time, the processors' time and the peak of memory, each roughly right."""
    usage = steps.run(
        "import time\nblock = bytearray(300 << 20)\nend = time.process_time() + 0.5\n"
        "while time.process_time() < end: pass"
    )
    assert 0.5 <= usage.cpu_s <= usage.wall_s + 0.2
    assert 300 << 20 <= usage.peak_bytes < 400 << 20


def test_environment_is_the_callers_and_holds_this_package(steps: Steps) -> None:
    """Nothing of ours is inherited; PYTHONPATH has this package's parent, then the caller's entries."""
    steps.run(
        "import os, json\nprint(json.dumps(dict(os.environ)))",
        environment={"PYTHONPATH": f"{steps.modules}{os.pathsep}/other", "A": "b"},
    )
    seen = json.loads(steps.text)
    assert seen["PYTHONPATH"].split(os.pathsep) == [str(ROOT), str(steps.modules), "/other"]
    assert seen["A"] == "b"
    assert "HOME" not in seen


def test_does_not_import_from_its_directory(steps: Steps) -> None:
    """A file that lies in the step's directory is not taken for a module."""
    (steps.cwd / "fractions.py").write_text("raise SystemExit(9)")
    steps.run("import fractions")


def test_has_nothing_of_the_builder_in_memory(steps: Steps) -> None:
    """The step's process holds the module, and of this program only what it needs to start it."""
    steps.run(
        "import sys\nown = {name for name in sys.modules if name.startswith('inference')}\n"
        "assert own == {'inference', 'inference.artifacts'}, own"
    )


def test_dumps_no_core_and_dies_first(steps: Steps) -> None:
    """A step leaves no core dump and is the first that the kernel's OOM killer takes."""
    steps.run(
        "import resource, pathlib\nprint(resource.getrlimit(resource.RLIMIT_CORE)[0],"
        " pathlib.Path('/proc/self/oom_score_adj').read_text())"
    )
    assert steps.text.split() == ["0", "1000"]


@pytest.mark.parametrize("code", [1, 3, 255])
def test_exit_code_is_an_error_that_would_come_again(steps: Steps, code: int) -> None:
    """Another exit code than 0 is StepFailedError, which names it and may be remembered."""
    with pytest.raises(StepFailedError, match=f"convert: ended with exit code {code} ") as caught:
        steps.run(f"raise SystemExit({code})")
    assert caught.value.cached
    assert caught.value.details["exit_code"] == code


def test_error_names_the_line_that_tells(steps: Steps) -> None:
    """Of all output the message has the exception, its first item, and no folder of this machine."""
    with pytest.raises(StepFailedError) as caught:
        steps.run(
            "print('\\x1b[31merror\\x1b[0m of no interest')\n"
            "raise ValueError('in /srv/secret/model/x.json do not exist:\\n  h.0.weight\\n  h.1.weight')"
        )
    assert caught.value.message.endswith("ValueError: in x.json do not exist: h.0.weight")


@pytest.mark.parametrize(
    "last",
    ["OSError: [Errno 28] No space left on device", "MemoryError", "tvm.error.InternalError: bad_alloc"],
)
def test_want_of_disk_or_memory_is_not_remembered(steps: Steps, last: str) -> None:
    """A step that ended for want of disk or memory may be tried again."""
    with pytest.raises(StepStarvedError) as caught:
        steps.run(f"print({last!r})\nraise SystemExit(1)")
    assert not caught.value.cached


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL", "SIGTERM"])
def test_signal_is_named(steps: Steps, name: str) -> None:
    """A step that a signal ended says which; SIGKILL has the hint to look for the OOM killer."""
    with pytest.raises(StepKilledError, match=f"was killed by {name} ") as caught:
        steps.run(f"import os, signal\nos.kill(os.getpid(), signal.{name})")
    assert not caught.value.cached
    assert ("OOM" in str(caught.value.hint)) == (name == "SIGKILL")


@pytest.mark.parametrize(
    "source",
    [WAIT, SPIN, f"import signal\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n{SPIN}"],
    ids=["waits", "works", "ignores SIGTERM"],
)
def test_is_cancelled_within_a_second(steps: Steps, source: str) -> None:
    """Cancelling ends the step within a second, whatever it does."""
    asked: list[float] = []

    def cancelled() -> bool:
        if steps.log.exists() and "ready" in steps.text:
            asked.append(time.monotonic())
        return bool(asked)

    with pytest.raises(CancelledError):
        steps.run(f"print('ready')\n{source}", cancelled=cancelled)
    assert time.monotonic() - asked[0] < 1.0


def test_caller_is_called_while_it_runs(steps: Steps) -> None:
    """*watch* is called again and again on the caller's thread."""
    threads: list[int] = []
    steps.run(
        "import threading\nthreading.Event().wait(0.5)", watch=lambda: threads.append(threading.get_ident())
    )
    assert len(threads) >= 3
    assert set(threads) == {threading.get_ident()}


def test_error_of_the_caller_ends_the_step(steps: Steps) -> None:
    """What *watch* raises ends the step, too, and is raised."""

    def watch() -> None:
        if steps.grandchild:
            raise KeyError("caller")

    with pytest.raises(KeyError, match="caller"):
        steps.run(BEAR.format(options="") + WAIT, watch=watch)
    assert steps.grandchild is not None
    assert is_gone(steps.grandchild)


@pytest.mark.parametrize(
    "options", ["", "start_new_session=True"], ids=["in the group", "in its own session"]
)
@pytest.mark.parametrize("ending", ["", "raise SystemExit(1)", WAIT], ids=["ends", "fails", "is cancelled"])
def test_grandchildren_end_with_it(steps: Steps, options: str, ending: str) -> None:
    """What a step started itself does not outlive it, not even in a session of its own."""
    with contextlib.suppress(BuildFailedError, CancelledError):
        steps.run(BEAR.format(options=options) + ending, cancelled=lambda: steps.grandchild is not None)
    wait_until(lambda: steps.grandchild, "the grandchild")
    assert steps.grandchild is not None
    assert is_gone(steps.grandchild)


def test_keeps_head_and_tail_of_much_output(steps: Steps) -> None:
    """Of 100 MB the log has at most 4 MiB: the begin, the end, and how much was left out."""
    line = "x" * 999
    steps.run(f"import sys\nprint('first')\nfor i in range(100_000): print({line!r})\nprint('last')")
    size = steps.log.stat().st_size
    assert step_log.KEPT_BYTES <= size < step_log.KEPT_BYTES + 100
    assert steps.text.startswith("first\n")
    assert steps.text.endswith("last\n")
    left_out = 6 + 100_000 * 1000 + 5 - step_log.KEPT_BYTES
    assert f"\n[{left_out} bytes left out]\n" in steps.text


def test_output_without_a_newline_is_kept(steps: Steps) -> None:
    """A line that never ends neither blocks the step nor fills the memory."""
    with pytest.raises(StepFailedError) as caught:
        steps.run("import sys\nfor i in range(1000): sys.stdout.write('y' * 10_000)\nraise SystemExit(1)")
    assert len(caught.value.message) < 400
    assert steps.log.stat().st_size < step_log.KEPT_BYTES + 100


def test_a_log_between_half_and_whole_is_whole(steps: Steps) -> None:
    """3 MiB are more than the first half and are kept whole, in order."""
    text = "".join(f"{number:07}\n" for number in range(3 * 2**17))
    steps.run("for number in range(3 * 2**17): print(f'{number:07}')")
    assert steps.text == text


def test_steps_share_a_log(steps: Steps) -> None:
    """A second step's output comes behind the first's, and can be read while it runs."""
    steps.run("print('one')")
    seen: list[str] = []
    with pytest.raises(CancelledError):
        steps.run(
            f"print('two')\n{WAIT}",
            watch=lambda: seen.append(steps.text),
            cancelled=lambda: bool(seen) and "two" in seen[-1],
        )
    assert steps.text == "one\ntwo\n"


def test_full_disk_ends_the_log_and_not_the_step(steps: Steps) -> None:
    """ENOSPC while logging, or no file to log to, is no reason to end a build."""
    steps.run("print('x' * 10_000)", log=Path("/dev/full"))
    steps.run("print('x' * 10_000)", log=steps.cwd / "absent" / "log")


def test_memory_above_the_budget_ends_it(steps: Steps) -> None:
    """A step that takes more than its budget is ended, with both figures; it is not remembered."""
    budget = Budget(memory_bytes=200 << 20, time_s=60.0, stall_s=60.0)
    with pytest.raises(StepMemoryError, match=r"convert: took 0\.\d\d GiB of memory; .* 0\.20 GiB") as caught:
        steps.run(f"block = bytearray(400 << 20)\n{WAIT}", budget=budget)
    assert not caught.value.cached


def test_memory_of_grandchildren_counts(steps: Steps) -> None:
    """The budget is for all processes of the step together."""
    eat = "import threading; block = bytearray(150 << 20); threading.Event().wait()"
    budget = Budget(memory_bytes=250 << 20, time_s=60.0, stall_s=60.0)
    with pytest.raises(StepMemoryError):
        steps.run(
            "import subprocess, sys\nfor i in range(2):"
            f" subprocess.Popen([sys.executable, '-c', {eat!r}])\n{WAIT}",
            budget=budget,
        )


def test_stall_is_noticed(steps: Steps) -> None:
    """A step that uses no processor for too long is ended."""
    budget = Budget(memory_bytes=None, time_s=60.0, stall_s=0.5)
    with pytest.raises(StepStalledError, match="used no processor for ") as caught:
        steps.run(WAIT, budget=budget)
    assert not caught.value.cached


def test_work_is_no_stall(steps: Steps) -> None:
    """A step that works without a word is left alone until its time is over."""
    budget = Budget(memory_bytes=None, time_s=1.5, stall_s=0.5)
    with pytest.raises(StepStalledError, match="still runs after 2 s; expected at most 2 s"):
        steps.run(SPIN, budget=budget)


def test_work_of_a_grandchild_is_no_stall(steps: Steps) -> None:
    """The compiler's own children work for it."""
    budget = Budget(memory_bytes=None, time_s=2.5, stall_s=1.0)
    with pytest.raises(StepStalledError, match="still runs"):
        steps.run(f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {SPIN!r}])", budget=budget)


@contextlib.contextmanager
def builder(steps: Steps, source: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process of its own that runs *source* as a step."""
    (steps.modules / "program.py").write_text(source)
    (steps.modules / "builder.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "from inference.artifacts.build.process import Budget, run_step\n"
        "run_step('s', 'program', [], log=Path(sys.argv[1]), cwd=Path(sys.argv[2]),"
        " environment={'PYTHONPATH': sys.argv[3]}, budget=Budget(None, 60.0, 60.0),"
        " cancelled=lambda: False)\n"
    )
    environment = {"PYTHONPATH": f"{ROOT}{os.pathsep}{steps.modules}"}
    command = [sys.executable, "-m", "builder", str(steps.log), str(steps.cwd), str(steps.modules)]
    with subprocess.Popen(command, env=environment) as process:
        try:
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize(
    "source",
    [WAIT, SPIN, "import ctypes\nctypes.PyDLL(None).pause()\n"],
    ids=["waits", "works", "holds Python's lock"],
)
def test_killing_the_builder_kills_the_step_and_its_children(steps: Steps, source: str) -> None:
    """SIGKILL of the builder leaves neither the step nor what the step started."""
    own = "import os\nopen('own', 'w').write(str(os.getpid()))\n"
    with builder(steps, own + BEAR.format(options="") + source) as process:
        wait_until(lambda: steps.grandchild, "the grandchild")
        assert steps.grandchild is not None
        step = int((steps.cwd / "own").read_text())
        assert not is_gone(step)
        process.kill()
        wait_until(lambda: is_gone(step), "the step's end", 1.0)
        wait_until(lambda: is_gone(steps.grandchild or 0), "the grandchild's end", 1.0)


def test_child_of_a_dead_parent_does_not_begin(steps: Steps) -> None:
    """A step whose builder died while it started ends before it runs the module."""
    (steps.modules / "program.py").write_text("print('ran')")
    for parent, close in ((os.getpid() + 1, False), (os.getpid(), True)):
        lifeline, writer = os.pipe()
        if close:
            os.close(writer)
        command = [sys.executable, "-m", "inference.artifacts.build_child", "/", str(lifeline), str(parent)]
        done = subprocess.run([*command, "program"], cwd=ROOT, pass_fds=[lifeline], capture_output=True)
        os.close(lifeline)
        if not close:
            os.close(writer)
        assert (done.returncode, done.stdout) == (4, b"")


def test_nothing_is_left_when_it_cannot_start(steps: Steps, monkeypatch: pytest.MonkeyPatch) -> None:
    """A system without room for another process is an OSError, and no descriptor stays open."""
    monkeypatch.setattr(sys, "executable", "/nonexistent")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(OSError):
        steps.run("")
    assert len(os.listdir("/proc/self/fd")) == before


def test_many_descriptors_are_no_hindrance(steps: Steps) -> None:
    """A daemon with more than 1024 open descriptors can build."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 2048), hard))
    held = [os.open("/dev/null", os.O_RDONLY) for _ in range(1100)]
    try:
        steps.run("print('done')")
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert steps.text == "done\n"


def test_a_number_is_never_signalled_after_it_was_reaped(
    steps: Steps, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The group is killed while its leader is a zombie: later its number may be another process's."""
    killed: list[bool] = []
    kill: Callable[[int, int], None] = os.killpg

    def killpg(group: int, number: int) -> None:
        killed.append(Path(f"/proc/{group}").exists())
        kill(group, number)

    monkeypatch.setattr(os, "killpg", killpg)
    steps.run("")
    assert killed == [True]


def test_errors_have_one_code() -> None:
    """All of a step's errors are failures of the build to those who map codes to statuses."""
    for error in (StepFailedError, StepStarvedError, StepKilledError, StepStalledError, StepMemoryError):
        assert issubclass(error, BuildFailedError)
        assert error.code == "build_failed"
