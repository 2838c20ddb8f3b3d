"""Fans: how fast they are told to turn, and turn."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inference.device.files import read_count
from inference.device.hwmon import monitors

_MOST_PWM = 255


@dataclass(frozen=True)
class Fan:
    """One hwmon device that drives a fan or counts its turns; Thor has one for each."""

    name: str
    speed_percent: float | None
    turns_per_minute: int | None


def read_fans(root: Path | str = "/") -> tuple[Fan, ...]:
    """Read every fan there is."""
    root = Path(root)
    fans = (_fan(name, path) for name, path in monitors(root))
    return tuple(fan for fan in fans if (fan.speed_percent, fan.turns_per_minute) != (None, None))


def _fan(name: str, path: Path) -> Fan:
    pwm = read_count(path / "pwm1")
    turns = next((n for file in ("rpm", "fan1_input") if (n := read_count(path / file)) is not None), None)
    speed = round(pwm * 100 / _MOST_PWM, 1) if pwm is not None and pwm <= _MOST_PWM else None
    return Fan(name or path.name, speed, turns)
