"""The closure: which files of this repository the host's side imports, found by reading them."""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

START = "inference.appliance"
THIRD_PARTY = frozenset({"cryptography"})
"""What a host has beside the standard library: the package depends on it."""

UNREACHED = frozenset({"psutil", "jtop"})
"""What functions that a host never calls import: it asks what its board is, not how busy it is."""


class ForeignImportError(Exception):
    """The host's side imports what the package cannot depend on."""


def closure(root: Path) -> list[Path]:
    """Return the files of `START` and of all that they import, relative to *root*, sorted.

    An import counts wherever it stands, except under ``TYPE_CHECKING`` and in a module's own
    ``__getattr__``, which imports only what somebody asks the package for by name.

    Raises:
        ForeignImportError: a file imports something that is neither here, nor in the standard
            library, nor in `THIRD_PARTY`.
    """
    found: dict[str, Path] = {}
    modules = (path.stem for path in (root / START.replace(".", "/")).glob("*.py"))
    waiting = [START, *(f"{START}.{name}" for name in modules if name != "__init__")]
    while waiting:
        name = waiting.pop()
        path = _file(root, name)
        if path is None or name in found:
            continue
        found[name] = path
        # Importing a.b.c runs a and a.b first.
        waiting += [name.rpartition(".")[0]] if "." in name else []
        for target, is_lazy in _imports(path):
            top = target.partition(".")[0]
            if top == START.partition(".")[0]:
                waiting.append(target)
            elif top not in sys.stdlib_module_names | THIRD_PARTY and not (is_lazy and top in UNREACHED):
                raise ForeignImportError(
                    f"{path.relative_to(root)} imports {top}, which a host does not have"
                )
    return sorted(path.relative_to(root) for path in found.values())


def _file(root: Path, name: str) -> Path | None:
    base = root / name.replace(".", "/")
    return next((path for path in (base / "__init__.py", base.with_suffix(".py")) if path.is_file()), None)


def _imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Yield the dotted names that *path* may import, and whether only a call of a function does.

    Of ``from a import b`` these are both a and a.b.
    """
    for node, is_lazy in _reached(ast.parse(path.read_text(encoding="utf-8")), False):
        if isinstance(node, ast.Import):
            yield from ((alias.name, is_lazy) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            yield module, is_lazy
            yield from ((f"{module}.{alias.name}", is_lazy) for alias in node.names)


def _reached(node: ast.AST, is_lazy: bool) -> Iterator[tuple[ast.AST, bool]]:
    for child in ast.iter_child_nodes(node):
        is_function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if (
            isinstance(child, ast.FunctionDef)
            and child.name == "__getattr__"
            and isinstance(node, ast.Module)
        ):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child, is_lazy
        yield from _reached(child, is_lazy or is_function)
