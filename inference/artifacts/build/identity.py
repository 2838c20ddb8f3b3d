"""The identity of the MLC that builds: which mlc_llm and TVM exactly, found without importing them.

``mlc_llm.__version__`` is "0.1.dev0" in every build of it, and the tags of images name no commits, so
the files themselves are looked at: the Python sources of mlc_llm, and the shared libraries of mlc_llm,
TVM and its FFI.
"""

from __future__ import annotations

import hashlib
import importlib.util
import json
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from inference.artifacts import files
from inference.artifacts.build.records import HASHES, keep_json, read_json
from inference.errors import MissingDependencyError

PACKAGES = ("mlc_llm", "tvm", "tvm_ffi")
_LIBRARIES = ("libmlc_llm", "libtvm")
# Beside the package; in lib/; and where a source checkout is built.
_PLACES = (".", "lib", "../lib", "../../build", "../build", "../../lib")
_CACHE = "engine.json"


@dataclass(frozen=True)
class Engine:
    """The mlc_llm of this machine.

    Args:
        identity: a SHA-256; another one is another engine, whose libraries must not be loaded here.
        files: how many files it stands for.
    """

    identity: str
    files: int

    @property
    def label(self) -> str:
        """A few digits, for people."""
        return f"mlc_llm {self.identity[:12]}"


def find_engine(store: Path) -> Engine:
    """Describe the mlc_llm that a child of this process would import.

    Args:
        store: the store's root, where the hashes of large files are kept; it need not be writable.

    Raises:
        MissingDependencyError: there is none.
    """
    roots = {name: root for name in PACKAGES if (root := _root(name)) is not None}
    if "mlc_llm" not in roots:
        raise MissingDependencyError(
            "mlc_llm is not installed here, and builds are made by it",
            hint="run this in a dustynv/mlc container; docs/mlc.md says which",
        )
    sources = sorted(roots["mlc_llm"].rglob("*.py"))
    libraries = sorted({path.resolve() for root in roots.values() for path in _libraries(root)})
    lines = [f"{_sha256(path)}  {path.relative_to(roots['mlc_llm'])}\n" for path in sources]
    hashes = _remembered(libraries, store / HASHES / _CACHE)
    lines += [f"{value}  {path.name}\n" for path, value in hashes.items()]
    return Engine(hashlib.sha256("".join(lines).encode()).hexdigest(), len(lines))


def _root(package: str) -> Path | None:
    with suppress(ImportError, ValueError):
        spec = importlib.util.find_spec(package)
        if spec is not None and spec.submodule_search_locations:
            return Path(next(iter(spec.submodule_search_locations)))
    return None


def _libraries(root: Path) -> Iterator[Path]:
    for place in _PLACES:
        for path in files.entries(root / place) if (root / place).is_dir() else ():
            if path.name.startswith(_LIBRARIES) and ".so" in path.suffixes:
                yield path


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _remembered(paths: list[Path], cache: Path) -> dict[Path, str]:
    """Return the hashes of large files; a file is read again only when it has changed."""
    known = read_json(cache)
    found, fresh = {}, {}
    for path in paths:
        mark = json.dumps(files.signature(path), sort_keys=True)
        found[path] = fresh[mark] = str(known.get(mark) or files.sha256_of(path))
    if fresh != known:
        keep_json(cache, fresh)
    return found
