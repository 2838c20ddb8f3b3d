"""docs/operate.md is true to the code: its tables name what there is, and nothing else."""

from __future__ import annotations

import ast
import dataclasses
import functools
import re
from pathlib import Path
from typing import Any

import pytest

from inference.appliance.config import SECTION, Config, load_config
from inference.appliance.layout import Layout
from inference.errors import SettingsError

ROOT = Path(__file__).resolve().parent.parent
PAGE = (ROOT / "docs/operate.md").read_text(encoding="utf-8")
CONFIGURATION = ROOT / "containers/deb/package/appliance.conf"


def rows(start: str) -> list[list[str]]:
    """The cells of the table whose head begins with *start*, without the head."""
    lines = PAGE[PAGE.index(f"\n| {start} |") + 1 :].split("\n\n")[0].splitlines()
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:] if line.startswith("|")
    ]


def spans(text: str) -> list[str]:
    """The code in a text."""
    return re.findall(r"`([^`]+)`", text)


def shown(value: Any) -> str:
    """A default, as the table writes it."""
    if value == "":
        return "none"
    if isinstance(value, bool):
        return f"`{'yes' if value else 'no'}`"
    return f"`{value:g}`" if isinstance(value, float) else f"`{value}`"


def test_settings_are_those_of_the_code() -> None:
    """The table has every setting of appliance.conf in its order, with its default."""
    told = [(spans(name)[0], default) for name, default, *_ in rows("setting")]
    assert told == [(field.name, shown(field.default)) for field in dataclasses.fields(Config)]


@pytest.mark.parametrize("row", rows("setting"), ids=lambda row: str(row[0]))
def test_values_of_a_setting_are_those_that_are_taken(row: list[str], tmp_path: Path) -> None:
    """The ends of a range are taken and what lies beyond is not; so it is with the words of a list."""
    name, values = spans(row[0])[0], row[2]
    good, bad = examples(values)
    for text in good:
        assert load(tmp_path, name, text) is not None
    for text in bad:
        with pytest.raises(SettingsError, match=name):
            load(tmp_path, name, text)


def examples(values: str) -> tuple[list[str], list[str]]:
    """Values that a cell says are taken, and values that it says are not."""
    if values == "1 to 65535":
        return ["1", "65535"], ["0", "65536", "x"]
    if values == "above 0, to 86400":
        return ["0.1", "86400"], ["0", "86401", "x"]
    if values in ("docker, podman", "yes, no"):
        return values.split(", "), ["maybe"]
    assert values in ("text", "address", "path", "name", "label"), values
    return ["some"], []


def load(directory: Path, name: str, text: str) -> Config:
    """Read a configuration with one setting."""
    path = directory / "appliance.conf"
    path.write_text(f"[{SECTION}]\n{name} = {text}\n", encoding="utf-8")
    return load_config(path)


def test_file_of_the_package_shows_the_defaults() -> None:
    """What the shipped appliance.conf has as a comment is the default; the runtime is the build's choice."""
    text = CONFIGURATION.read_text(encoding="utf-8")
    told = dict(re.findall(r"^#(\w+) =[ ]?(.*)$", text, re.MULTILINE))
    wanted = {field.name: shown(field.default).strip("`") for field in dataclasses.fields(Config)}
    assert {name: told.get(name, "") or "none" for name in wanted if name != "runtime"} == {
        name: value for name, value in wanted.items() if name != "runtime"
    }


def test_every_unit_is_explained() -> None:
    """The table has the units of systemd/, all of them."""
    told = {spans(row[0])[0] for row in rows("unit")}
    assert told == {path.name for path in (ROOT / "systemd").glob("*.service")}


def test_every_place_is_named() -> None:
    """What lies where: every path that the layout has is, or lies in, one that the table has."""
    told = [Path(path) for row in rows("path") for path in spans(row[0]) if path.startswith("/")]
    layout = Layout()
    names = [name for name, each in vars(Layout).items() if isinstance(each, property)]
    assert len(names) > 8
    for name in names:
        path = getattr(layout, name)
        assert any(path == each or path.is_relative_to(each) or each.is_relative_to(path) for each in told), (
            name
        )


@pytest.mark.parametrize("row", rows("what you see"), ids=lambda row: str(row[0])[:40])
def test_what_one_may_see_is_what_the_code_says(row: list[str]) -> None:
    """The messages and codes in "What to do when" are the program's own."""
    for span in spans(row[0]):
        assert any(span in text for text in texts()), span


@functools.cache
def texts() -> list[str]:
    """Every text in the sources that is no docstring; one with values in it in its parts."""
    found: list[str] = []
    for path in (ROOT / "inference").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        statements = (node.value for node in ast.walk(tree) if isinstance(node, ast.Expr))
        docstrings = {id(value) for value in statements}
        found += [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docstrings
        ]
    return found


def test_numbers_of_the_units_are_theirs() -> None:
    """The watchdog's time, the crash loop's count and its minutes, and the exit codes are those in force."""
    unit = (ROOT / "systemd/jetllm.service").read_text(encoding="utf-8")
    told = dict(re.findall(r"^(\w+)=(\S+)$", unit, re.MULTILINE))
    assert (told["WatchdogSec"], told["StartLimitBurst"]) == ("60", "4")
    assert told["StartLimitIntervalSec"] == str(50 * 60)
    assert told["RestartPreventExitStatus"] == "78"
    for text in ("watchdog (60 s)", "four times in 50 minutes", "ends with 78"):
        assert text in PAGE
