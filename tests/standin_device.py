"""A device in a directory: stand-ins for `docker`, `systemctl` and `nvpmodel`, and releases for it.

`docker` keeps images as files and runs none; what the current image would serve is served by a real HTTP
daemon of a process of its own, which `systemctl` starts and stops. An image says in its labels how its
daemon behaves: "good", "never" (ready), "crash", or "import" (its import of models fails).
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import signal
import sys
import tarfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from inference.appliance.config import Config
from inference.appliance.creating import Contents, create_bundle
from inference.appliance.firstboot import FirstBoot
from inference.appliance.health import Daemon
from inference.appliance.installation import Installation
from inference.appliance.layout import Layout
from inference.appliance.manifest import Golden, Model
from inference.appliance.releases import Releases, load_releases
from inference.appliance.signing import generate_keys
from tests.conftest import wait_until

DEVICES = Path(__file__).parent / "fixtures" / "devices"
BOARD = "orin-nano-8gb-super"
PROMPT, ANSWER = "Why is the sky blue?", " Because it is."
_OWNER = 10001
_EFFECTS = ("os.rename", "subprocess.Popen")
_EVERY_EFFECT = (*_EFFECTS, "os.remove", "os.chmod", "os.chown")
_LOOKS = ("image inspect", "info", "is-active", "-p", "-L")

_DOCKER = r"""#!/bin/sh
cd "{place}" || exit 1
echo "$*" >> calls
full=$( [ -e full ] && echo yes )
absent() {{ echo "Error response from daemon: No such image: $1" >&2; exit 1; }}
find_id() {{
  if [ -e "tags/$1" ]; then cat "tags/$1"; elif [ -e "images/${{1#sha256:}}" ]; then echo "${{1#sha256:}}"; fi
}}
case "$1" in
info) echo "{place}/images" ;;
image)
  id=$(find_id "$5"); [ -n "$id" ] || absent "$5"
  case "$4" in
  *Id*) echo "sha256:$id" ;;
  *Labels*) sed 's/.*"Labels": *\({{[^}}]*}}\).*/\1/' "images/$id" ;;
  *RepoTags*) (cd tags && grep -lx "$id" -- *) | sed 's/.*/"&"/' | paste -sd, | sed 's/.*/[&]/' ;;
  esac ;;
load)
  [ -z "$full" ] || {{ echo "write: no space left on device" >&2; exit 1; }}
  config=$(tar xOf "$3" manifest.json | sed 's/.*"Config": *"\([^"]*\)".*/\1/')
  name=$(tar xOf "$3" manifest.json | sed 's/.*"RepoTags": *\["\([^"]*\)"\].*/\1/')
  id=${{config%.json}}
  tar xOf "$3" "$config" > "images/$id"
  echo "$id" > "tags/$name"
  echo "Loaded image: $name" ;;
tag) id=$(find_id "$2"); [ -n "$id" ] || absent "$2"; echo "$id" > "tags/$3" ;;
rmi)
  id=$(find_id "$2"); [ -n "$id" ] || absent "$2"
  if [ -e "tags/$2" ]; then rm "tags/$2"; fi
  (cd tags && grep -qx "$id" -- * 2>/dev/null) || rm -f "images/$id" ;;
run)
  for word; do
    case "$word" in
    type=bind,*target=/bundle*) source=${{word#*source=}}; source=${{source%%,*}} ;;
    type=bind,*target=/var/cache/jetllm*) store=${{word#*source=}}; store=${{store%%,*}} ;;
    jetllm:*) id=$(find_id "$word") ;;
    esac
  done
  grep -q '"behaviour": "import"' "images/$id" && {{ echo "error: the store is damaged" >&2; exit 1; }}
  cp -r "$source/store/." "$store/" ;;
container) if [ -e pid ]; then echo true; else echo "no such container" >&2; exit 1; fi ;;
exec) shift; echo "$*" ; exit 7 ;;
rm|stop) ;;
*) echo "unknown command: $*" >&2; exit 2 ;;
esac
"""

_SYSTEMCTL = r"""#!/bin/sh
cd "{place}" || exit 1
echo "systemctl $*" >> calls
end() {{
  [ -e pid ] || return 0
  kill -9 "$(cat pid)" 2>/dev/null
  rm -f pid
}}
case "$1" in
is-active) cat state 2>/dev/null || echo inactive ;;
reset-failed) [ "$(cat state 2>/dev/null)" = failed ] && rm state ;;
stop) end; echo inactive > state ;;
start)
  [ -e pid ] && [ "$(cat state)" = active ] && exit 0
  id=$(cat "tags/jetllm:current" 2>/dev/null) || {{ echo failed > state; exit 0; }}
  behaviour=$(sed 's/.*"behaviour": *"\([^"]*\)".*/\1/' "images/$id")
  case "$behaviour" in
  never) echo activating > state ;;
  crash) echo failed > state ;;
  *)
    "{python}" -I -S "{daemon}" "{port}" "images/$id" </dev/null >/dev/null 2>&1 &
    echo $! > pid
    echo active > state ;;
  esac ;;
esac
"""

_DAEMON = r"""
import json, socket, sys
labels = json.load(open(sys.argv[2]))["config"]["Labels"]
listener = socket.socket()
listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
listener.bind(("127.0.0.1", int(sys.argv[1])))
listener.listen()
while True:
    client, _ = listener.accept()
    with client, client.makefile("rb") as lines:
        path, length = lines.readline().split()[1], 0
        while (line := lines.readline().strip()):
            if line.lower().startswith(b"content-length:"):
                length = int(line.split(b":")[1])
        lines.read(length)
        body = {"status": "ok", "version": labels["org.opencontainers.image.version"]}
        if path == b"/v1/completions":
            body = {"choices": [{"text": labels["answer"]}], "usage": {"completion_tokens": 4}}
        data = json.dumps(body).encode()
        head = b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(data)
        client.sendall(head + data)
"""

_NVPMODEL = r"""#!/bin/sh
echo "nvpmodel $*" >> "{place}/calls"
[ -e "{place}/restart-needed" ] && exit 0
mkdir -p "{root}/var/lib/nvpmodel"
echo "pmode:000$2 fmode:quiet" > "{root}/var/lib/nvpmodel/status"
"""


class StandinDevice:
    """A device of *board* below *directory*; `directory/bin` is for PATH."""

    def __init__(self, directory: Path, port: int, board: str = BOARD) -> None:
        self.place = directory / "engine"
        self.bin = directory / "bin"
        self.root = directory / "root"
        self.port = port
        shutil.copytree(DEVICES / board, self.root, symlinks=True)
        for each in (self.bin, self.place / "images", self.place / "tags"):
            each.mkdir(parents=True)
        self.layout = Layout(self.root)
        self.config = Config(runtime="", port=port, ready_timeout_s=20.0)
        for each in (self.layout.trusted, self.layout.bundles, self.layout.store, self.layout.state):
            each.mkdir(parents=True)
        self._own()
        (self.root / "dev").mkdir()
        daemon = self.place / "daemon.py"
        daemon.write_text(_DAEMON)
        words = {
            "place": self.place,
            "root": self.root,
            "python": sys.executable,
            "daemon": daemon,
            "port": port,
        }
        for name, text in (("docker", _DOCKER), ("systemctl", _SYSTEMCTL), ("nvpmodel", _NVPMODEL)):
            path = self.bin / name
            path.write_text(text.format(**words))
            path.chmod(0o755)
        self.key = directory / "signer"
        shutil.copy(generate_keys(self.key), self.layout.trusted)
        self.notes: list[str] = []
        self.kept = directory / "kept-0"

    def keep(self) -> None:
        """Keep what is on the disk now, for `restore`."""
        self.kept = self.kept.with_name(f"kept-{time.monotonic_ns()}")
        for each in (self.root, self.place):
            shutil.copytree(each, self.kept / each.name, symlinks=True)

    def restore(self) -> None:
        """Have on the disk what was kept; nothing runs."""
        self.stop_daemon()
        for each in (self.root, self.place):
            shutil.rmtree(each)
            shutil.copytree(self.kept / each.name, each, symlinks=True)
        self._own()
        self.notes.clear()

    def _own(self) -> None:
        """Give the daemon's directories to another user than root, as the package does."""
        if os.geteuid() == 0:
            for each in (self.layout.store, self.layout.state):
                os.chown(each, _OWNER, _OWNER)

    # What the product sees

    def installation(self) -> Installation:
        """What a command of the product begins with."""
        return Installation(self.layout, self.config, self.notes.append)

    def configure(self, **settings: Any) -> None:
        """Change the configuration."""
        self.config = replace(self.config, **settings)

    def boot(self) -> None:
        """Power on: what systemd does, in its order."""
        FirstBoot(self.installation()).run()
        self.installation().unit.start()

    def cut_power(self) -> None:
        """End every process, and forget what does not outlive a boot."""
        self.stop_daemon()
        (self.place / "state").unlink(missing_ok=True)
        shutil.rmtree(self.layout.run, ignore_errors=True)

    def stop_daemon(self) -> None:
        """Kill the daemon."""
        with suppress(FileNotFoundError, ProcessLookupError):
            os.kill(int((self.place / "pid").read_text()), signal.SIGKILL)
        (self.place / "pid").unlink(missing_ok=True)

    # What a test sees

    @property
    def releases(self) -> Releases:
        """The state as it is on the disk."""
        return load_releases(self.layout.releases)

    @property
    def tags(self) -> dict[str, str]:
        """The image of each tag."""
        return {each.name: f"sha256:{each.read_text().strip()}" for each in (self.place / "tags").iterdir()}

    @property
    def images(self) -> set[str]:
        """The images that the engine has."""
        return {f"sha256:{each.name}" for each in (self.place / "images").iterdir()}

    @property
    def calls(self) -> list[str]:
        """The commands that were given, in their order."""
        path = self.place / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def served(self) -> str:
        """Wait until the daemon answers; return the version that does."""
        daemon = Asked(self.port)
        wait_until(daemon.answers, "the daemon")
        return daemon.version

    def check(self) -> None:
        """See that state, tags, images and what is served agree, and that nothing is left over."""
        found = self.releases
        wanted = {"jetllm:current": found.current, "jetllm:previous": found.previous}
        assert found.next is None
        assert self.tags == {tag: each.image for tag, each in wanted.items() if each is not None}
        assert self.images == found.images()
        assert not (self.layout.releases.parent / "work").exists()
        assert found.current is not None and self.served() == found.current.version

    # What is brought

    def bundle(
        self,
        version: str,
        *,
        behaviour: str = "good",
        answer: str = ANSWER,
        l4t: tuple[str, ...] = ("36.4",),
        reference: str | None = None,
        path: Path | None = None,
        layer: bytes = b"layer",
    ) -> Path:
        """Make a signed bundle; its image behaves so, and promises `ANSWER`."""
        archive = self.place / f"{version}.tar"
        labels = {"org.opencontainers.image.version": version, "behaviour": behaviour, "answer": answer}
        write_archive(archive, reference or f"jetllm:{version}", labels, layer)
        weights = self.place / "weights.gguf"
        weights.write_bytes(b"weights of " + version.encode())
        path = path or self.place.parent / f"bundle-{version}"
        create_bundle(
            Contents(
                version=version,
                image=archive,
                models=(Model("m", "v"),),
                golden=(Golden("m", "v", PROMPT, ANSWER, (1, 2, 3, 4)),),
                store={f"weights/{version}.gguf": weights},
                l4t=l4t,
            ),
            path,
            self.key,
        )
        return path


class Asked:
    """What is asked of the daemon by a test."""

    def __init__(self, port: int) -> None:
        self._daemon = Daemon("127.0.0.1", port)
        self.version = ""

    def answers(self) -> bool:
        """Whether it is there; `version` is what answers."""
        ready, told = self._daemon.ready()
        self.version = str(told.get("version"))
        return ready


def write_archive(path: Path, reference: str, labels: Mapping[str, str], layer: bytes) -> None:
    """Write what `docker save` writes of an image with one layer."""
    content = io.BytesIO()
    with tarfile.open(fileobj=content, mode="w") as tar:
        _add(tar, "file", layer)
    blob = content.getvalue()
    config = {
        "architecture": "arm64",
        "config": {"Labels": dict(labels)},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{hashlib.sha256(blob).hexdigest()}"]},
    }
    raw = json.dumps(config).encode()
    name = f"{hashlib.sha256(raw).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": [reference], "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        _add(tar, "manifest.json", json.dumps(manifest).encode())
        _add(tar, name, raw)
        _add(tar, "layer.tar", blob)


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def run_killed(act: Callable[[], object], at: int | str, *, every: bool = False) -> bool:
    """Run *act* in a process that is killed before its effect number *at*; return whether it came so far.

    An effect is what outlives the process, told by Python's audit hooks: a rename, and a command that
    changes something; with *every* also a removal, another mode and another owner.

    Args:
        at: the number of an effect, or a command of which this is a part.
    """
    effects = _EVERY_EFFECT if every else _EFFECTS
    child = os.fork()
    if child == 0:
        left = at if isinstance(at, int) else -1

        def kill_or_count(event: str, arguments: tuple[Any, ...]) -> None:
            nonlocal left
            words = " ".join(map(str, arguments[1])) if event == "subprocess.Popen" else ""
            if event in effects and not _looks(words):
                left -= 1
                if left == -1 and isinstance(at, int):
                    os.kill(os.getpid(), signal.SIGKILL)
            if isinstance(at, str) and at in words:
                os.kill(os.getpid(), signal.SIGKILL)

        code = 1
        try:
            sys.addaudithook(kill_or_count)
            act()
            code = 0
        finally:
            os._exit(code)
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        assert os.WTERMSIG(status) == signal.SIGKILL
        return True
    assert os.WEXITSTATUS(status) == 0
    return False


def swept(
    device: StandinDevice, act: Callable[[], object], *, first: int = 0, every: bool = False
) -> list[str]:
    """Kill *act* before each of its effects, cut the power, switch on; return what serves then, in order."""
    served = []
    for at in range(first, 100):
        device.restore()
        if not run_killed(act, at, every=every):
            break
        device.cut_power()
        device.boot()
        device.check()
        served.append(device.served())
    return served


def _looks(command: str) -> bool:
    return any(f" {look} " in command for look in _LOOKS)
