"""The architecture, as rules that every file under inference/ (and phase3/) is checked against.

The tables come first and are the specification; docs/architecture.md says why they are so.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent

# Units from top to bottom. A module imports from rows below its own and from its own unit; a row's
# units do not see each other. A unit is a module, or a package with all that is in it.
ROWS: tuple[tuple[str, ...], ...] = (
    ("__main__",),
    ("cli",),
    ("phase3",),
    ("daemon", "doctor", "appliance"),
    ("client", "console"),
    ("inference_engine", "api"),
    ("provision", "bench", "bundling"),
    ("service", "decisions"),
    ("building", "removal", "jobs", "generating", "embedding"),
    ("dispatch",),
    ("catalog", "stream", "instance", "logs", "decision_log", "registry_watch", "gauges", "keys"),
    ("choice", "planning", "views", "measurements", "tallies", "shaping", "sliding", "transcript", "canary"),
    ("compiled",),
    ("runtime.supervisor",),
    ("runtime.account",),
    ("runtime.entry",),
    ("runtime.plan",),
    ("runtime.worker", "runtime.worker_main", "runtime.calibration"),
    (
        "selection",
        "artifacts",
        "backends",
        "runtime.ledger",
        "runtime.wire",
        "runtime.policy",
        "runtime.vitals",
    ),
    ("registry", "device"),
    ("settings",),
    ("errors", "generation", "runtime.__init__"),
)

# What sees less than its row allows.
# The appliance runs on a host that has Python and python3-cryptography, and nothing else.
SEES_ONLY = {"phase3": {"inference_engine"}, "appliance": {"errors", "device", "artifacts", "keys"}}

# Packages (and modules of the standard library) that only these units may import.
ONLY_IN: dict[str, set[str]] = {
    "flask": {"api"},
    "werkzeug": {"api"},
    "waitress": {"api"},
    "prometheus_client": {"api"},
    "click": {"cli"},
    "rich": {"cli", "console", "phase3.progress"},
    "yaml": {"settings"},
    "huggingface_hub": {"artifacts.sources.hub"},
    "cryptography": {"appliance"},
    "xllamacpp": {"backends.llamacpp"},
    "torch": {"backends.transformers"},
    "transformers": {"backends.transformers"},
    "mlc_llm": {"backends.mlc", "artifacts.build"},
    "tvm": {"backends.mlc", "artifacts.build"},
    "jtop": {"device.jtop_main"},
    "subprocess": {
        "runtime.worker",
        "artifacts.build",
        "artifacts.sources.pip",
        "device",
        "doctor",
        "appliance",
    },
    "multiprocessing": set(),
    "pickle": set(),
    "marshal": set(),
    "shelve": set(),
    "dill": set(),
    "joblib": set(),
}

# Names that only these units may use.
USED_ONLY_IN: dict[str, set[str]] = {
    # In the second systemd tells the supervisor whom to notify.
    "os.environ": {"settings", "appliance.__main__"},
    "os.getenv": {"settings"},
    "os.putenv": {"settings", "backends.mlc"},  # TVM reads its number of threads there
    "importlib.import_module": {"backends.__init__", "artifacts.sources.hub"},
    "os.fork": set(),
    "os.system": set(),
    "os.popen": set(),
    "eval": set(),
    "exec": set(),
    "compile": set(),
    "__import__": set(),
    "torch.load": set(),
    "yaml.load": set(),
    "print": set(),
}

# Arguments and keys that may have no other value than this.
ALWAYS = {"shell": False, "trust_remote_code": False, "use_safetensors": True, "weights_only": True}

MAX_LINES = 400


@dataclass(frozen=True)
class Module:
    """One source file; *name* is dotted and without "inference"."""

    name: str
    source: str

    @property
    def tree(self) -> ast.Module:
        """The source, parsed."""
        return ast.parse(self.source)

    def is_in(self, units: set[str]) -> bool:
        """Whether the module is one of *units* or lies in one."""
        return any(f"{self.name}.".startswith(f"{unit}.") for unit in units)


def imports_point_down(module: Module) -> Iterator[str]:
    """A module imports from the rows below, from its own unit, and from nowhere else."""
    row, unit = place(module.name)
    if unit is None:
        yield "is in no row of the table"
        return
    for target in own_imports(module):
        target_row, target_unit = place(target)
        allowed = SEES_ONLY.get(unit, {target_unit})
        if target_unit == unit:
            continue
        if target_unit is None or target_row <= row or target_unit not in allowed:
            yield f"imports {target}, which is not below {unit}"


def packages_stay_where_they_belong(module: Module) -> Iterator[str]:
    """An engine, Flask, a subprocess, ... is imported only where the table says; a pickle never."""
    for name in {target.partition(".")[0] for target in all_imports(module)}:
        if name in ONLY_IN and not module.is_in(ONLY_IN[name]):
            yield f"imports {name}, which is for {sorted(ONLY_IN[name]) or 'nobody'}"


def names_stay_where_they_belong(module: Module) -> Iterator[str]:
    """The environment is read in settings only; code is never made from text; nothing prints."""
    used = {ast.unparse(node) for node in ast.walk(module.tree) if isinstance(node, ast.Name | ast.Attribute)}
    used |= {target for target in all_imports(module) if target in USED_ONLY_IN}
    for name in sorted(used & set(USED_ONLY_IN)):
        if not module.is_in(USED_ONLY_IN[name]):
            yield f"uses {name}, which is for {sorted(USED_ONLY_IN[name]) or 'nobody'}"


def dangerous_arguments_have_their_safe_value(module: Module) -> Iterator[str]:
    """No shell, no code out of a checkpoint, no pickled weights; not even through a variable."""
    for name, value in given_values(module):
        safe = isinstance(value, ast.Constant) and value.value is ALWAYS[name]
        if not safe:
            yield f"gives {name} the value {ast.unparse(value)}; it is always {ALWAYS[name]}"


def files_are_short(module: Module) -> Iterator[str]:
    """A file has at most 400 lines."""
    lines = len(module.source.splitlines())
    if lines > MAX_LINES:
        yield f"has {lines} lines; at most {MAX_LINES}"


def docstrings_begin_with_a_sentence(module: Module) -> Iterator[str]:
    """A module says in its first line what it is, and the line is a sentence."""
    first = (ast.get_docstring(module.tree) or "").partition("\n")[0]
    if not first.endswith("."):
        yield f"has the first docstring line {first!r}; expected a sentence"


Rule = Callable[[Module], Iterator[str]]
RULES: tuple[Rule, ...] = (
    imports_point_down,
    packages_stay_where_they_belong,
    names_stay_where_they_belong,
    dangerous_arguments_have_their_safe_value,
    files_are_short,
    docstrings_begin_with_a_sentence,
)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_rule_holds_everywhere(rule: Rule) -> None:
    """Every module keeps every rule; the rule's docstring says which."""
    broken = [f"{module.name} {what}" for module in modules() for what in rule(module)]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    ("name", "source", "rule"),
    [
        ("api.app", "import inference.cli", imports_point_down),
        ("service", "from inference.api import app", imports_point_down),
        ("service", "from inference import api", imports_point_down),
        ("selection.selector", "from inference.artifacts.store import Store", imports_point_down),
        ("selection.selector", "def f():\n    import inference.service", imports_point_down),
        ("registry.spec", "from ..errors import JetLLMError", imports_point_down),
        ("novelty", "", imports_point_down),
        ("phase3.bench", "from inference.service import Service", imports_point_down),
        ("service", "from flask import g", packages_stay_where_they_belong),
        ("device.jtop", "def f():\n    from jtop import jtop", packages_stay_where_they_belong),
        ("backends.mlc", "import torch.cuda", packages_stay_where_they_belong),
        ("runtime.worker_main", "import subprocess", packages_stay_where_they_belong),
        ("backends.transformers", "import pickle", packages_stay_where_they_belong),
        ("runtime.worker", "import os\nos.environ['A']", names_stay_where_they_belong),
        ("runtime.worker", "from os import environ", names_stay_where_they_belong),
        ("registry.registry", "eval('1')", names_stay_where_they_belong),
        ("settings", "import yaml\nyaml.load('')", names_stay_where_they_belong),
        ("runtime.worker", "Popen(a, shell=True)", dangerous_arguments_have_their_safe_value),
        ("backends.transformers", "load(trust_remote_code=flag)", dangerous_arguments_have_their_safe_value),
        ("backends.transformers", "{'trust_remote_code': True}", dangerous_arguments_have_their_safe_value),
        ("backends.transformers", "load(use_safetensors=None)", dangerous_arguments_have_their_safe_value),
        ("service", "\n" * 401, files_are_short),
        ("service", '"""Stuff"""', docstrings_begin_with_a_sentence),
        ("service", "import os", docstrings_begin_with_a_sentence),
    ],
)
def test_rule_notices(name: str, source: str, rule: Rule) -> None:
    """Each rule goes red on code that breaks it."""
    assert list(rule(Module(name, source)))


def test_every_row_of_the_tables_has_a_file() -> None:
    """A unit that no longer exists is taken out of the rows."""
    planned = {"phase3", "__main__"}
    names = [f"{module.name}." for module in modules()]
    units = {unit for row in ROWS for unit in row} - planned
    assert [unit for unit in units if not any(name.startswith(f"{unit}.") for name in names)] == []


def modules() -> list[Module]:
    files = [*(ROOT / "inference").rglob("*.py"), *(ROOT / "phase3").rglob("*.py")]
    found = []
    for path in sorted(files):
        name = ".".join(path.relative_to(ROOT).with_suffix("").parts).removeprefix("inference.")
        found.append(Module(name, path.read_text(encoding="utf-8")))
    assert len(found) > 20
    return found


def place(name: str) -> tuple[int, str | None]:
    """Return the row and the unit of a module; the package itself stands above all rows."""
    if name == "__init__":
        return -1, "__init__"
    for row, units in enumerate(ROWS):
        for unit in units:
            if f"{name}.".startswith(f"{unit}."):
                return row, unit
    return len(ROWS), None


def own_imports(module: Module) -> Iterator[str]:
    """Yield the modules of inference that *module* imports, wherever in the file; not the version."""
    for target in all_imports(module):
        if target.startswith("."):
            yield target
        elif target.startswith("inference.") and target != "inference.__version__":
            yield target.removeprefix("inference.")


def all_imports(module: Module) -> Iterator[str]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            yield from (f"{base}.{alias.name}" for alias in node.names)


def given_values(module: Module) -> Iterator[tuple[str, ast.expr]]:
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Call):
            yield from ((word.arg, word.value) for word in node.keywords if word.arg in ALWAYS)
        elif isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value in ALWAYS:
                    yield key.value, value
