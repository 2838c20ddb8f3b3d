"""The power mode: chosen by its name, because its number differs from board to board."""

from __future__ import annotations

import difflib
import re
from dataclasses import dataclass
from pathlib import Path

from inference.appliance.command import run
from inference.device.files import below, read_text
from inference.errors import SettingsError

_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=([0-9]{1,4})\s+NAME=(\S+)\s*>")
_NOW = re.compile(r"pmode:([0-9]{1,4})")
_TIMEOUT_S = 120.0


@dataclass(frozen=True)
class PowerMode:
    """One mode of this board's nvpmodel; *key* is what ``nvpmodel -m`` takes."""

    key: int
    name: str


def power_modes(root: Path) -> tuple[PowerMode, ...]:
    """Return the modes that `/etc/nvpmodel.conf` below *root* has; none where there is no such file."""
    text = read_text(below(root, "etc/nvpmodel.conf"))
    return tuple(PowerMode(int(key), name) for key, name in _MODE.findall(text))


def named_mode(root: Path, name: str) -> PowerMode:
    """Return the mode of that name.

    Raises:
        SettingsError: this board has no such mode; the message has those that it has.
    """
    modes = {mode.name: mode for mode in power_modes(root)}
    if name in modes:
        return modes[name]
    if not modes:
        raise SettingsError(
            f"power_mode: {name}: this machine has no power modes (/etc/nvpmodel.conf)",
            hint="leave power_mode out of /etc/jetllm/appliance.conf",
        )
    near = difflib.get_close_matches(name, modes, 1)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    raise SettingsError(
        f"power_mode: expected one of {', '.join(modes)}, got {name!r}{meant}",
        hint="correct power_mode in /etc/jetllm/appliance.conf, then: sudo jetllm firstboot",
    )


def choose_mode(root: Path, name: str) -> str:
    """Put the board into the mode of that name; return what came of it, in words.

    Nothing is done where it is in the mode already. A mode that needs a restart of the board is noted
    by nvpmodel for the next one: its question is left without an answer, so that nothing restarts here.

    Raises:
        SettingsError: there is no such mode, or nvpmodel refused it.
        MissingDependencyError: there is no nvpmodel.
    """
    mode = named_mode(root, name)
    if _is_in(root, mode):
        return f"power mode {name}: it was in force already"
    done = run("nvpmodel", "-m", str(mode.key), timeout_s=_TIMEOUT_S)
    if _is_in(root, mode):
        return f"power mode {name}: in force"
    if done.code != 0:
        raise SettingsError(f"power_mode: nvpmodel -m {mode.key} failed; it said: {done.last_words}")
    return f"power mode {name}: chosen; it is in force after a restart of the board"


def _is_in(root: Path, mode: PowerMode) -> bool:
    now = _NOW.search(read_text(below(root, "var/lib/nvpmodel/status")))
    return now is not None and int(now.group(1)) == mode.key
