"""The container engine: docker or podman, by its command line."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from inference.appliance.config import Config
from inference.appliance.errors import ImageError
from inference.appliance.layout import Layout

NAME = "jetllm"
"""Of the container."""

CURRENT, PREVIOUS, NEXT = f"{NAME}:current", f"{NAME}:previous", f"{NAME}:next"
"""The images that an appliance may hold."""

KEY_VARIABLE = "JETLLM_API_KEY"
"""Given to the container by name, so that its value is on no command line."""

SHORT_TIMEOUT_S = 60.0
LOAD_TIMEOUT_S = 3600.0
_PORT = 8080
_PIDS = 1024
_MAX_OUTPUT_BYTES = 4 * 2**20
_MAX_WORDS_CHARACTERS = 600
_ABSENT = re.compile(r"no such (?:image|container|object)|not known|no container with name", re.IGNORECASE)
_LOADED = re.compile(r"^Loaded image(?:\(s\))?(?: ID)?: *(\S+)$", re.MULTILINE)


@dataclass(frozen=True)
class Mount:
    """A directory or file of the host in a container; *source* must be there."""

    source: Path
    target: str
    writable: bool = False


class Engine:
    """What the appliance asks of the engine that *config* names.

    Every method raises `ImageError`, with the engine's own words, when the engine does not do it.
    """

    def __init__(self, config: Config, layout: Layout) -> None:
        self._config = config
        self._layout = layout

    def load(self, archive: Path, *, timeout_s: float = LOAD_TIMEOUT_S) -> str:
        """Take the one image of *archive* (as `save` writes it) and return its id."""
        output = self._ask("load", "--input", str(archive), timeout_s=timeout_s)
        names = _LOADED.findall(output)
        if len(names) != 1:
            raise ImageError(f"{archive.name}: expected one image in it, got {len(names)}")
        loaded = self.image_id(names[0])
        if loaded is None:
            raise ImageError(f"{archive.name}: {self._config.engine} loaded {names[0]}, and does not know it")
        return loaded

    def image_id(self, name: str) -> str | None:
        """Return the id, "sha256:...", of the image of that name or id; ``None`` where there is none."""
        output = self._inspect(name, "{{.Id}}")
        return None if output is None else f"sha256:{output.strip().removeprefix('sha256:')}"

    def labels(self, name: str) -> dict[str, str]:
        """Return an image's labels; those of an image that is not there are none."""
        found = json.loads(self._inspect(name, "{{json .Config.Labels}}") or "null") or {}
        return {str(key): str(value) for key, value in found.items()}

    def tag(self, image: str, name: str) -> None:
        """Give *image* (a name or an id) *name*, taking it from the image that has it."""
        self._ask("tag", image, name)

    def untag(self, name: str) -> None:
        """Take *name* from its image, which goes with its last name; a name that is not there is fine."""
        self._ask("rmi", name, absent_is_fine=True)

    def remove_image(self, image: str) -> None:
        """Remove an image under all its names; one that is not there is fine, one that runs is not."""
        for name in json.loads(self._inspect(image, "{{json .RepoTags}}") or "null") or []:
            self.untag(name)
        self._ask("rmi", image, absent_is_fine=True)

    def run_argv(self, name: str, *, groups: Sequence[int] = ()) -> list[str]:
        """Return the command that runs the daemon of image *name* in the foreground.

        The command's environment must hold `KEY_VARIABLE`.

        Args:
            groups: numbers of further groups of the container's user, as the GPU's devices want.
        """
        config, layout = self._config, self._layout
        host = f"[{config.host}]" if ":" in config.host else config.host
        mounts = [
            Mount(layout.store, "/var/cache/jetllm", writable=config.writable_store),
            Mount(layout.state, "/var/lib/jetllm", writable=True),
            Mount(layout.run, "/run/jetllm"),
        ]
        environment = {
            "JETLLM_HOST": "0.0.0.0",  # noqa: S104 - in the container; it is published on config.host
            "JETLLM_PORT": str(_PORT),
            "JETLLM_CACHE_DIR": "/var/cache/jetllm",
            "JETLLM_STATE_DIR": "/var/lib/jetllm",
            "JETLLM_DRAIN_TIMEOUT_S": f"{config.drain_timeout_s:g}",
        }
        if layout.settings.is_file():
            mounts.append(Mount(layout.settings, "/etc/jetllm/jetllm.yaml"))
            environment["JETLLM_CONFIG"] = "/etc/jetllm/jetllm.yaml"
        return [
            *self._run(NAME, mounts),
            # The daemon answers to the host's own name only if it knows it.
            *("--hostname", socket.gethostname()),
            *("--publish", f"{host}:{config.port}:{_PORT}"),
            # What it writes goes to the supervisor's output: a second copy would wear the disk.
            *("--log-driver", "none"),
            # The supervisor asks it itself, and podman would want systemd's timers for that.
            "--no-healthcheck",
            *(part for group in groups for part in ("--group-add", str(group))),
            *("--env", KEY_VARIABLE),
            *(part for pair in environment.items() for part in ("--env", "=".join(pair))),
            name,
        ]

    def run_once(
        self,
        name: str,
        argv: Sequence[str],
        mounts: Sequence[Mount] = (),
        *,
        timeout_s: float = LOAD_TIMEOUT_S,
    ) -> str:
        """Run *argv* in a container of image *name*, without a network, to its end; return what it wrote.

        The container's user is the daemon's; of the image's own settings, those that *mounts* covers hold.
        """
        container = f"{NAME}-once"
        self.remove(container)
        command = [*self._run(container, mounts)[1:], "--network", "none", "--no-healthcheck", name, *argv]
        try:
            return self._ask(*command, timeout_s=timeout_s)
        finally:
            self.remove(container)

    def stop(self, container: str, timeout_s: float) -> None:
        """Ask a container to end, and kill it after *timeout_s*; one that is not there is fine."""
        seconds = str(max(1, round(timeout_s)))
        self._ask(
            "stop", "-t", seconds, container, timeout_s=timeout_s + SHORT_TIMEOUT_S, absent_is_fine=True
        )

    def remove(self, container: str) -> None:
        """Kill and remove a container; one that is not there is fine."""
        self._ask("rm", "--force", "--volumes", container, absent_is_fine=True)

    def _run(self, container: str, mounts: Sequence[Mount]) -> list[str]:
        """Return the beginning of a command that runs a container with no more rights than it needs."""
        owner = self._owner()
        return [
            *self._command(),
            *("run", "--rm", "--name", container),
            *self._runtime(),
            *("--read-only", "--tmpfs", "/tmp"),  # noqa: S108 - the container's own
            *("--cap-drop", "ALL", "--security-opt", "no-new-privileges"),
            *("--pids-limit", str(_PIDS)),
            *("--cgroupns", "private"),  # the default on cgroup v2; on v1 it would see the host's
            *("--user", owner),
            *(part for mount in mounts for part in ("--mount", _mount(mount))),
        ]

    def _owner(self) -> str:
        """Return the user and group that the state directory belongs to, as numbers.

        Raises:
            ImageError: it is not there, or is root's: root in a container is a way to root on the host.
        """
        hint = "systemd-sysusers && systemd-tmpfiles --create jetllm.conf"
        try:
            status = self._layout.state.stat()
        except OSError as error:
            raise ImageError(f"{self._layout.state}: {error.strerror}", hint=hint) from None
        if status.st_uid == 0:
            raise ImageError(f"{self._layout.state}: belongs to root; expected the user jetllm", hint=hint)
        return f"{status.st_uid}:{status.st_gid}"

    def _command(self) -> list[str]:
        # podman's option of that name comes before the command, docker's after it.
        runtime = self._config.runtime
        return [self._config.engine, *(("--runtime", runtime) if runtime and self._is_podman else ())]

    def _runtime(self) -> list[str]:
        runtime = self._config.runtime
        return ["--runtime", runtime] if runtime and not self._is_podman else []

    @property
    def _is_podman(self) -> bool:
        return self._config.engine == "podman"

    def _inspect(self, image: str, form: str) -> str | None:
        return self._ask("image", "inspect", "--format", form, image, absent_is_fine=True) or None

    def _ask(self, *arguments: str, timeout_s: float = SHORT_TIMEOUT_S, absent_is_fine: bool = False) -> str:
        """Run the engine's command; return what it wrote, nothing where what it was to look at is absent."""
        command = [self._config.engine, *arguments]
        what = f"{self._config.engine} {arguments[0]}"
        with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
            try:
                code = subprocess.run(  # noqa: S603 - a list, and the engine is docker or podman
                    command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, timeout=timeout_s, check=False
                ).returncode
            except subprocess.TimeoutExpired:
                raise ImageError(f"{what}: not done within {timeout_s:g} s", hint=self._hint) from None
            except OSError as error:
                raise ImageError(f"{what}: {error.strerror}", hint=self._hint) from None
            output, words = _beginning(out), _end(err)
        if code == 0:
            return output
        if absent_is_fine and _ABSENT.search(words):
            return ""
        raise ImageError(f"{what}: {words or f'ended with {code}'}", hint=self._hint)

    @property
    def _hint(self) -> str:
        return f"does {self._config.engine} itself work? {self._config.engine} info"


def _mount(mount: Mount) -> str:
    # Not --volume, with which docker makes a directory of root's where the source is missing.
    return f"type=bind,source={mount.source},target={mount.target}" + ("" if mount.writable else ",readonly")


def _beginning(file: IO[bytes]) -> str:
    file.seek(0)
    return file.read(_MAX_OUTPUT_BYTES).decode("utf-8", "replace")


def _end(file: IO[bytes]) -> str:
    size = file.seek(0, 2)
    file.seek(max(0, size - _MAX_OUTPUT_BYTES))
    text = " ".join(file.read().decode("utf-8", "replace").split())
    return text[-_MAX_WORDS_CHARACTERS:]
