"""The scripts inside the images: the health check, and what looks at the base during the build."""

from __future__ import annotations

import http.server
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CONTAINERS = ROOT / "containers"
FAKE_MLC = ROOT / "tests" / "fake_mlc"


class _Ready(http.server.BaseHTTPRequestHandler):
    status = 200

    def do_GET(self) -> None:
        assert self.path == "/readyz"
        self.send_response(self.status)
        self.end_headers()
        self.wfile.write(b'{"status":"loading"}')

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@contextmanager
def _daemon(status: int) -> Iterator[int]:
    answering = type("_Answering", (_Ready,), {"status": status})
    with http.server.HTTPServer(("127.0.0.1", 0), answering) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _health(port: int) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-I", "-S", str(CONTAINERS / "healthcheck.py")],
        env={"JETLLM_PORT": str(port), "http_proxy": "http://127.0.0.1:9"},
        capture_output=True,
        text=True,
        timeout=20,
    )


@pytest.mark.parametrize(("status", "code"), [(200, 0), (503, 1), (401, 1)])
def test_health_check_is_readiness(status: int, code: int) -> None:
    """The container is healthy when /readyz says 200 and not otherwise; the engine keeps what it said."""
    with _daemon(status) as port:
        done = _health(port)
    assert (done.returncode, done.stdout) == (code, f'{status} {{"status":"loading"}}\n')


def test_health_check_of_a_daemon_that_is_gone() -> None:
    """Where nobody listens the container is not healthy, and a traceback is not the reason."""
    with _daemon(200) as port:
        pass
    done = _health(port)
    assert done.returncode == 1
    assert done.stderr.startswith("no answer: ")
    assert "Traceback" not in done.stderr


TVM = "class runtime:\n    enabled = staticmethod(lambda name: name in {devices})\n"


def _assert_base(tmp_path: Path, command: str, *path: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(CONTAINERS / "assert_base.py"), command, str(tmp_path / "base.json")],
        env={"PYTHONPATH": ":".join(map(str, path))},
        capture_output=True,
        text=True,
        timeout=60,
    )


def _base(directory: Path, devices: tuple[str, ...] = ("cpu", "cuda")) -> Path:
    """Make a site directory with MLC's stand-in, TVM and a torch."""
    shutil.copytree(FAKE_MLC / "mlc_llm", directory / "mlc_llm", ignore=shutil.ignore_patterns("__pycache__"))
    for name, text in (("tvm", TVM.format(devices=devices)), ("torch", "")):
        (directory / name).mkdir()
        (directory / name / "__init__.py").write_text(text)
    _packaged(directory, "torch", "2.6.0")
    return directory


def _packaged(directory: Path, name: str, version: str) -> None:
    information = directory / f"{name}-{version}.dist-info"
    information.mkdir(parents=True)
    (information / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")


def test_base_with_mlc_and_cuda_passes(tmp_path: Path) -> None:
    """A base that has both is noted, and packages in a directory of our own change nothing of it."""
    base, ours = _base(tmp_path / "site"), tmp_path / "ours"
    (ours / "click").mkdir(parents=True)
    _packaged(ours, "click", "8.5.1")
    noted = _assert_base(tmp_path, "note", base)
    assert noted.returncode == 0, noted.stderr
    assert "package torch: 2.6.0" in noted.stdout
    checked = _assert_base(tmp_path, "check", ours, base)
    assert checked.returncode == 0, checked.stderr


def test_base_without_mlc_is_refused(tmp_path: Path) -> None:
    """Upstream's build can end well without mlc_llm: ours ends with a sentence and with what to do."""
    done = _assert_base(tmp_path, "note", tmp_path)
    assert done.returncode == 1
    assert "the base image has no usable mlc_llm: ModuleNotFoundError" in done.stderr
    assert "hint: use an image of dustynv/mlc" in done.stderr


def test_base_without_cuda_is_refused(tmp_path: Path) -> None:
    """A TVM for the CPU imports as well as any: it is asked."""
    done = _assert_base(tmp_path, "note", _base(tmp_path / "site", devices=("cpu",)))
    assert done.returncode == 1
    assert "built without CUDA" in done.stderr


def test_base_whose_libraries_do_not_load_is_told_about_the_runtime(tmp_path: Path) -> None:
    """Without the NVIDIA runtime libcuda is missing during the build: the hint names the runtime."""
    base = _base(tmp_path / "site")
    (base / "tvm/__init__.py").write_text("raise OSError('libcuda.so.1: cannot open shared object file')\n")
    done = _assert_base(tmp_path, "note", base)
    assert done.returncode == 1
    assert "OSError: libcuda.so.1" in done.stderr
    assert "NVIDIA runtime" in done.stderr


@pytest.mark.parametrize("change", ["version", "shadow", "removed"])
def test_change_of_the_base_is_refused(tmp_path: Path, change: str) -> None:
    """Another version of a package of the base's, or another torch before it on the path, ends the build."""
    base, ours = _base(tmp_path / "site"), tmp_path / "ours"
    ours.mkdir()
    assert _assert_base(tmp_path, "note", base).returncode == 0
    if change == "shadow":
        (ours / "torch").mkdir()
        (ours / "torch/__init__.py").write_text("")
    else:
        shutil.rmtree(base / "torch-2.6.0.dist-info")
        if change == "version":
            _packaged(base, "torch", "2.13.0")
    done = _assert_base(tmp_path, "check", ours, base)
    assert done.returncode == 1
    assert "our packages changed the base image: " in done.stderr
    assert "torch" in done.stderr
