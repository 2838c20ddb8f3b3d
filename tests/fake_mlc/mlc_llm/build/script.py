"""The script of a step: how long it takes, and what goes wrong in it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEY = "fake_mlc"
_BESIDE = Path(__file__).absolute().parent.parent.parent / "fake.json"


class Script:
    """What is to happen in one step, from `fake.json` beside the package and from the configuration.

    In both, ``{STEP: {...}}`` is for a step, ``{"quantizations": {NAME: {STEP: {...}}}}`` for a step of
    one quantization, ``"engine"`` in the place of a step for the engine that loads the result. What is
    more special wins, and the configuration wins over the file. Of a step:

    step_s: how long it takes at least (0.05). at: where all below happens: "begin", "middle" (half of
    what the step writes is written) or "end" ("begin"). ignore_sigterm, grandchild (a process that ignores
    SIGTERM, too), allocate_mib, output_mib, message (to stderr), cpu_s (work), hang (without work, for
    ever), spin (with work), signal (a name), raise (a text), exit (a code). Of what was written:
    truncate (bytes cut off the last file), corrupt (flip a bit in it), omit (names, removed). shard_bytes
    (32 MiB), devices (["cpu"]).
    """

    def __init__(self, step: str, quantization: str, config: Mapping[str, Any]) -> None:
        beside = json.loads(_BESIDE.read_text()) if _BESIDE.exists() else {}
        own = config.get(KEY) or {}
        self.own = own
        self.values = _merged(step, quantization, (beside, own))
        self.engine = _merged("engine", quantization, (beside, own))
        if self.values.get("ignore_sigterm"):
            signal.signal(signal.SIGTERM, signal.SIG_IGN)

    def __getitem__(self, name: str) -> Any:
        return self.values.get(name)

    def reach(self, point: str) -> None:
        """Take half of the step's time before its middle and its end; misbehave if this is the point."""
        if point != "begin":
            time.sleep(self.values.get("step_s", 0.05) / 2)
        if point == self.values.get("at", "begin"):
            self._misbehave()

    def _misbehave(self) -> None:
        if self["grandchild"]:
            code = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"
            subprocess.Popen([sys.executable, "-c", code])
        self._held = b"\1" * ((self["allocate_mib"] or 0) * 2**20)
        for _ in range((self["output_mib"] or 0) * 1024):
            sys.stderr.write("x" * 1023 + "\n")
        if self["message"]:
            sys.stderr.write(f"{self['message']}\n")
        self._work(self["cpu_s"] or 0)
        while self["hang"]:
            time.sleep(600)
        while self["spin"]:
            self._work(600)
        if self["signal"]:
            os.kill(os.getpid(), signal.Signals[self["signal"]])
        if self["raise"]:
            raise RuntimeError(self["raise"])
        if self["exit"] is not None:
            sys.exit(self["exit"])

    def _work(self, cpu_s: float) -> None:
        end_s = time.process_time() + cpu_s
        while time.process_time() < end_s:
            pass

    def spoil(self, last: Path) -> None:
        """Damage what was written; *last* is the file that was written last."""
        if self["truncate"]:
            os.truncate(last, last.stat().st_size - self["truncate"])
        if self["corrupt"]:
            data = bytearray(last.read_bytes())
            data[len(data) // 2] ^= 1
            last.write_bytes(data)
        for name in self["omit"] or ():
            (last.parent / name).unlink()


def _merged(step: str, quantization: str, sources: tuple[Mapping[str, Any], ...]) -> dict[str, Any]:
    merged: dict[str, Any] = {}
    for source in sources:
        merged |= source.get(step) or {}
        merged |= ((source.get("quantizations") or {}).get(quantization) or {}).get(step) or {}
    return merged
