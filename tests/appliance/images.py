"""The tests' own images: ours on the stand-in bases, and ones that go wrong in a known way."""

from __future__ import annotations

import hashlib
import http.server
import platform
import shutil
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from tests.appliance.base import PYTHON, ROOT, SUITE_PYTHON, Recipe, locked, system_tar, wheels
from tests.appliance.podman import Podman

PYTHON_IMAGE = "docker.io/library/python:3.11-slim"
JETSON_IMAGE = "docker.io/dustynv/mlc:0.20.0-r36.4.0"
SYSTEMD_IMAGE = "localhost/jetllm-test-systemd:1"
CPU_IMAGE = "localhost/jetllm-test:cpu"
SECOND_IMAGE = "localhost/jetllm-test:second"
BROKEN_IMAGE = "localhost/jetllm-test:broken"
WRONG_IMAGE = "localhost/jetllm-test:wrong"
SECOND_VERSION = "0.2.0"

SITE = f"/usr/local/lib/python{SUITE_PYTHON[0]}.{SUITE_PYTHON[1]}/dist-packages"
"""Where the stand-in for a Jetson's image has its packages."""

SOURCES = "/opt/mlc-llm/python"
"""Where it has mlc_llm, on Python's path by a variable of the image."""

OLD_PACKAGES = {"torch": "2.6.0", "transformers": "4.51.0", "click": "7.0"}
"""What it has of packages that we have, or could have, too."""

WHEELS_PLACE = "wheels-of-the-tests"
"""Part of the address that a build gets its packages from, and of nothing else."""

_KEPT_ARCHIVES = 3
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}

# What is in the image that answers with other tokens: it samples hot, whatever is asked for.
_WRONG = '''

_asked = body_of


def body_of(request, grammar):  # type: ignore[no-untyped-def]  # noqa: F811
    """A defect on purpose."""
    return _asked(request, grammar) | {"temperature": 3.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "seed": 7}
'''


def architecture() -> str:
    """This machine's architecture, as images name it."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def import_system(engine: Podman, recipe: Recipe, name: str, *changes: str) -> str:
    """Have *recipe*'s system as the image *name*."""
    if not engine.has(name):
        told = [part for change in changes for part in ("--change", change)]
        engine.run("import", *told, str(system_tar(recipe)), name, timeout_s=300)
    return name


def import_python(engine: Podman) -> str:
    """Have the stand-in for python:3.11-slim."""
    return import_system(engine, PYTHON, PYTHON_IMAGE, 'CMD ["python3"]')


def build_jetson_base(
    engine: Podman, name: str = JETSON_IMAGE, *, mlc: bool = True, cuda: bool = True
) -> str:
    """Have a stand-in for a Jetson's image, under the name of the real one, or one that lacks something.

    Beside MLC it has packages that are older than ours, which nobody may touch, and a path of its own.
    """
    with tempfile.TemporaryDirectory() as temporary:
        site, sources = Path(temporary) / "site", Path(temporary) / "sources"
        for package, version in OLD_PACKAGES.items():
            _add_package(site, package, version)
        _add_tvm(site, cuda)
        sources.mkdir()
        if mlc:
            shutil.copytree(ROOT / "tests" / "fake_mlc" / "mlc_llm", sources / "mlc_llm")
        lines = (
            f"FROM {import_python(engine)}",
            f"COPY site/ {SITE}/",
            f"COPY sources/ {SOURCES}/",
            f"ENV PYTHONPATH={SOURCES} PIP_INDEX_URL=http://127.0.0.1:9/gone",
        )
        recipe = Path(temporary) / "Dockerfile"
        recipe.write_text("\n".join(lines) + "\n")
        engine.build(Path(temporary), recipe, name)
    return name


def _add_package(site: Path, name: str, version: str) -> None:
    (site / name).mkdir(parents=True)
    (site / name / "__init__.py").write_text(f'__version__ = "{version}"\n')
    metadata = site / f"{name}-{version}.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
    (metadata / "INSTALLER").write_text("pip\n")
    (metadata / "RECORD").write_text(f"{name}/__init__.py,,\n")


def _add_tvm(site: Path, cuda: bool) -> None:
    (site / "tvm").mkdir()
    (site / "tvm" / "__init__.py").write_text("from tvm import runtime\n")
    devices = ("cpu", "cuda") if cuda else ("cpu",)
    (site / "tvm" / "runtime.py").write_text(f"def enabled(name):\n    return name in {devices}\n")


def build(engine: Podman, dockerfile: str, name: str, *options: str) -> str:
    """Build one of ours, with wheels that were fetched before; return what was printed.

    pip gets the place of the wheels, which is there during the build only, in a secret.
    """
    with tempfile.TemporaryDirectory() as temporary, _served(wheels()) as url:
        secret = Path(temporary) / "pip.conf"
        secret.write_text(f"[global]\nno-index = true\nfind-links = {url}\n")
        return engine.build(
            *(ROOT, ROOT / "containers" / dockerfile, name),
            *("--secret", f"id=pip,src={secret}", *options),
        )


class _Files(http.server.SimpleHTTPRequestHandler):
    def translate_path(self, path: str) -> str:
        return super().translate_path(path.removeprefix(f"/{WHEELS_PLACE}"))

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _served(directory: Path) -> Iterator[str]:
    """Serve *directory* to this machine; yield its address, which `WHEELS_PLACE` is part of."""
    handler = partial(_Files, directory=str(directory))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{WHEELS_PLACE}/"
        finally:
            server.shutdown()
            thread.join()


def load_or_build_cpu_image(engine: Podman) -> str:
    """Have our image for the CPU, without PyTorch; built from these very files now or in an earlier run."""
    if engine.has(CPU_IMAGE):
        return CPU_IMAGE
    with locked("cpu-image") as cache:
        archive = cache / f"cpu-image-{_context_key()}.tar"
        if archive.exists():
            engine.run("load", "--input", str(archive), timeout_s=300)
            return CPU_IMAGE
        import_python(engine)
        build(engine, "Dockerfile.cpu", CPU_IMAGE, "--build-arg", "TRANSFORMERS=no")
        save(engine, CPU_IMAGE, archive)
        for old in sorted(cache.glob("cpu-image-*.tar"), key=lambda path: path.stat().st_mtime)[
            :-_KEPT_ARCHIVES
        ]:
            old.unlink()
    return CPU_IMAGE


def save(engine: Podman, image: str, archive: Path) -> Path:
    """Write *image* to *archive*, as a bundle has it."""
    temporary = archive.with_suffix(".part")
    temporary.unlink(missing_ok=True)
    engine.run("save", "--format", "docker-archive", "--output", str(temporary), image, timeout_s=300)
    temporary.rename(archive)
    return archive


def derive(engine: Podman, name: str, *lines: str) -> str:
    """Have an image that is ours and *lines* of a Dockerfile."""
    if not engine.has(name):
        with tempfile.TemporaryDirectory() as temporary:
            recipe = Path(temporary) / "Dockerfile"
            recipe.write_text("\n".join((f"FROM {load_or_build_cpu_image(engine)}", *lines)) + "\n")
            (Path(temporary) / "wrong.txt").write_text(_WRONG)
            engine.build(Path(temporary), recipe, name)
    return name


def derive_second(engine: Podman) -> str:
    """Have an image that is as good as ours and has another version."""
    return derive(engine, SECOND_IMAGE, f'LABEL org.opencontainers.image.version="{SECOND_VERSION}"')


def derive_broken(engine: Podman) -> str:
    """Have an image whose daemon listens and never becomes ready."""
    return derive(
        engine,
        BROKEN_IMAGE,
        'LABEL org.opencontainers.image.version="0.3.0"',
        "ENV JETLLM_PRELOAD=no-such-model",
    )


def derive_wrong(engine: Podman) -> str:
    """Have an image that serves, and answers with other tokens than ours."""
    module = "/opt/jetllm/lib/python3.11/site-packages/inference/backends/_llamacpp_request.py"
    return derive(
        engine,
        WRONG_IMAGE,
        'LABEL org.opencontainers.image.version="0.4.0"',
        "USER 0:0",
        "COPY wrong.txt /tmp/wrong.txt",
        f"RUN cat /tmp/wrong.txt >> {module} && rm /tmp/wrong.txt && python3 -m compileall -q {module}",
        "USER 10001:10001",
    )


def _context_key() -> str:
    """What tells these sources from others: all that the build sees."""
    digest = hashlib.sha256(PYTHON.key.encode())
    named = ("pyproject.toml", "README.md", "LICENSE", "models.json", "models.schema.json", ".dockerignore")
    paths = [ROOT / name for name in named]
    for directory in ("inference", "phase3", "requirements"):
        paths += sorted(path for path in (ROOT / directory).rglob("*") if path.is_file())
    paths += sorted(
        path for path in (ROOT / "containers").iterdir() if path.suffix in (".py", ".txt", ".cpu")
    )
    for path in paths:
        if "__pycache__" not in path.parts:
            digest.update(f"{path.relative_to(ROOT)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:12]


def why_no_wheels() -> str | None:
    """Say why our dependencies cannot be fetched for the stand-in; ``None`` where they can."""
    if sys.version_info[:2] != SUITE_PYTHON:
        wanted = ".".join(map(str, SUITE_PYTHON))
        return f"the stand-in has Python {wanted}: run the tests with it, its wheels are fetched by this pip"
    return None
