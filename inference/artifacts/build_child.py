"""A build step's process: runs one Python module as a program, and lives no longer than its parent.

It is not in `inference.artifacts.build`, with which it would import the builder: 0.4 s and 26 MB a step.

Started as ``python -m inference.artifacts.build_child DIRECTORY LIFELINE_FD PARENT_PID MODULE ARGUMENT...``
in a session of its own, with the reading end of a pipe whose writing end only the parent has.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import fcntl
import os
import resource
import runpy
import select
import signal
import sys
from pathlib import Path

EXIT_PARENT_GONE = 4
OOM_SCORE = 1000  # the kernel's OOM killer takes the build, whatever else there is
_PR_SET_PDEATHSIG = 1


def main(argv: list[str]) -> None:
    """Run the module that the arguments name to its end; its exit code is the process's."""
    directory, lifeline, parent, module, *arguments = argv
    _confine()
    _tie_to_parent(int(parent), int(lifeline))
    os.chdir(directory)
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _confine() -> None:
    faulthandler.enable()  # a crash in the compiler leaves the Python stacks in the log
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a dump of the weights would fill the disk
    with contextlib.suppress(OSError):  # denied in some containers; the kernel's default stays
        Path("/proc/self/oom_score_adj").write_text(str(OOM_SCORE))


def _tie_to_parent(parent: int, lifeline: int) -> None:
    """Have the kernel kill this process's whole group when the parent ends.

    The lifeline's reader asks for a signal (fcntl(2), F_SETSIG and a negative F_SETOWN) when the pipe
    loses its writer: SIGKILL, to the group, so that what a step has started itself ends with it. A thread
    that reads the pipe could not do that in time: the compiler holds Python's lock for minutes. The
    parent-death signal reaches this process alone, and is for a kernel without the other.
    """
    os.set_inheritable(lifeline, False)
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    with contextlib.suppress(OSError):
        fcntl.fcntl(lifeline, fcntl.F_SETOWN, -os.getpgrp())
        fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    hung_up = select.poll()
    hung_up.register(lifeline, 0)
    if os.getppid() != parent or hung_up.poll(0):  # it ended before the kernel was asked
        os._exit(EXIT_PARENT_GONE)


if __name__ == "__main__":
    main(sys.argv[1:])
