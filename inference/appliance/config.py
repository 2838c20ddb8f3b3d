"""The configuration of an appliance: /etc/jetllm/appliance.conf, an INI file with one section."""

from __future__ import annotations

import configparser
import difflib
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from inference.errors import SettingsError

SECTION = "appliance"


@dataclass(frozen=True)
class Config:
    """How this device runs the container.

    Args:
        engine: the command that runs containers: "docker" or "podman".
        runtime: the OCI runtime that gives the container the GPU; "" where there is none.
        host: the address that the API is published on.
        port: its TCP port.
        bundle: the bundle of the first boot; "" for the flashed one (`Layout.bundles` / "factory").
        power_mode: the name of the nvpmodel mode to choose at first boot; "" leaves it as it is.
        data_label: the label of a partition for `Layout.data`; "" for none.
        ready_timeout_s: time from the container's start to the first canary token.
        drain_timeout_s: time that accepted requests get when the unit stops.
        writable_store: whether the container may write weights (`jetllm pull`); else they are read-only.
    """

    engine: str = "docker"
    runtime: str = "nvidia"
    host: str = "127.0.0.1"
    port: int = 8080
    bundle: str = ""
    power_mode: str = ""
    data_label: str = ""
    ready_timeout_s: float = 600.0
    drain_timeout_s: float = 30.0
    writable_store: bool = False


def load_config(path: Path) -> Config:
    """Read *path*; a file that is not there gives the defaults.

    Raises:
        SettingsError: naming every line that cannot be used.
    """
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read_string(path.read_text(encoding="utf-8"), source=str(path))
    except FileNotFoundError:
        return Config()
    except (configparser.Error, UnicodeDecodeError) as error:
        raise SettingsError(
            f"{path}: {error}", hint=f"it is an INI file with one section, [{SECTION}]"
        ) from error
    problems = [
        f"[{name}]: unknown section, wanted [{SECTION}]" for name in parser.sections() if name != SECTION
    ]
    given = dict(parser[SECTION]) if parser.has_section(SECTION) else {}
    values: dict[str, Any] = {}
    known = {field.name: field for field in fields(Config)}
    for name, text in given.items():
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            problems.append(f"{name}: unknown setting" + (f"; did you mean {near[0]!r}?" if near else ""))
            continue
        try:
            values[name] = _value(name, known[name].default, text.strip())
        except ValueError as error:
            problems.append(f"{name}: {error}, got {text!r}")
    if problems:
        raise SettingsError(f"{path}: " + "; ".join(problems), hint="docs/operate.md lists every setting")
    return Config(**values)


def _value(name: str, default: Any, text: str) -> Any:
    if name == "engine" and text not in ("docker", "podman"):
        raise ValueError("expected docker or podman")
    if isinstance(default, bool):
        if text.lower() not in ("yes", "no", "true", "false"):
            raise ValueError("expected yes or no")
        return text.lower() in ("yes", "true")
    if isinstance(default, int):
        if not (text.isdecimal() and 0 < int(text) < 65536):
            raise ValueError("expected 1 to 65535")
        return int(text)
    if isinstance(default, float):
        try:
            value = float(text)
        except ValueError:
            raise ValueError("expected seconds, above 0 to 86400") from None
        if not 0 < value <= 86_400:
            raise ValueError("expected seconds, above 0 to 86400")
        return value
    return text
