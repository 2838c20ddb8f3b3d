"""The supervisor's parts: notifications, the fit of an image, the engine, the questions to a daemon."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from inference.appliance.config import Config
from inference.appliance.engine import CURRENT, Engine, Mount
from inference.appliance.errors import ImageError, NotReadyError
from inference.appliance.fit import why_unfit
from inference.appliance.health import Daemon
from inference.appliance.layout import Layout
from inference.appliance.notify import Notifier, inherited
from inference.device.detect import Device, detect
from inference.device.images import image_for
from tests.scripted_engine import ScriptedEngine
from tests.supervised import appliance

BOARDS = Path(__file__).parent / "fixtures" / "devices"
JETSON_LABELS = {
    "org.jetllm.arch": "arm64",
    "org.jetllm.l4t": "36.4 36.5",
    "org.jetllm.compute-capability": "8.7",
}


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """An appliance."""
    return appliance(tmp_path / "root", 8080)


@pytest.mark.parametrize("name", ["{tmp}/notify", "@{tmp}/abstract"])
def test_notifications_reach_a_socket_of_either_kind(tmp_path: Path, name: str) -> None:
    """A path is a path; "@" stands for the NUL byte of an abstract socket."""
    address = name.format(tmp=tmp_path)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.settimeout(5)
        listening.bind(f"\0{address[1:]}" if address.startswith("@") else address)
        notifier = Notifier({"NOTIFY_SOCKET": address})
        notifier.ready("ready\nafter 2 s")
        notifier.watchdog()
        notifier.stopping("draining", 1.5)
        told = [listening.recv(4096).decode() for _ in range(3)]
    stopping = "STOPPING=1\nEXTEND_TIMEOUT_USEC=1500000\nSTATUS=draining"
    assert told == ["READY=1\nSTATUS=ready after 2 s", "WATCHDOG=1", stopping]


def test_without_systemd_nobody_is_told_and_all_is_well(tmp_path: Path) -> None:
    """A supervisor in a terminal works as one under systemd; so it does when the socket goes."""
    Notifier({}).ready("ready")
    Notifier({"NOTIFY_SOCKET": f"{tmp_path}/gone"}).ready("ready")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "1500000"}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": str(os.getpid())}, 1.5),
        ({"WATCHDOG_USEC": "1500000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "-1"}, None),
    ],
)
def test_the_watchdogs_time_is_ours_only_if_it_names_us(
    environ: dict[str, str], seconds: float | None
) -> None:
    """A child that inherits the variables is not watched."""
    assert Notifier(environ).watchdog_s == seconds


def test_a_child_inherits_nothing_of_systemds() -> None:
    """podman would hand the socket on into the container."""
    environ = {"NOTIFY_SOCKET": "a", "WATCHDOG_USEC": "1", "WATCHDOG_PID": "2", "PATH": "/bin"}
    assert inherited(environ) == {"PATH": "/bin"}


@pytest.mark.parametrize(
    ("board", "why"),
    [
        ("orin-nano-8gb-super", None),
        ("agx-orin-64gb", None),
        (
            "orin-nano-4gb",
            "L4T 36.4 and 36.5; this machine has L4T 35.3.1, for which there is dustynv/mlc:r35.4.1",
        ),
        ("agx-orin-32gb", "this machine has L4T 39.2.0, for which no image with MLC is published"),
        ("agx-thor-t5000", "this machine has L4T 38.2.0, for which no image with MLC is published"),
        ("nano-4gb", "this machine has L4T 32.7"),
        ("x86-none", "the image is built for aarch64; this machine is x86_64"),
    ],
)
def test_each_board_takes_the_image_for_its_l4t_and_no_other(board: str, why: str | None) -> None:
    """The labels of the image for L4T 36.4 and 36.5 against every board that we have files of."""
    found = why_unfit(JETSON_LABELS, detect(BOARDS / board))
    assert (found is None) if why is None else (why in (found or ""))


def test_the_published_table_and_the_check_agree() -> None:
    """Where the table names the image that ours is made from, ours fits; elsewhere it does not."""
    for path in sorted(BOARDS.iterdir()):
        device = dataclasses.replace(detect(path), arch="aarch64", compute_capability=None)
        image = image_for(device)
        fits = why_unfit(JETSON_LABELS, device) is None
        assert fits == (image is not None and image.tag.endswith("r36.4.0")), path.name


@pytest.mark.parametrize(
    ("labels", "changes", "fits"),
    [
        ({}, {}, True),
        ({"org.jetllm.l4t": "", "org.jetllm.arch": ""}, {"l4t": None}, True),
        ({"org.jetllm.l4t": "36.4"}, {"l4t": None}, False),
        ({"org.jetllm.l4t": "36.4"}, {"l4t": "36.40"}, False),
        ({"org.jetllm.l4t": "36.4"}, {"l4t": "36.4.7"}, True),
        ({"org.jetllm.l4t": "36"}, {"l4t": "36.5.0"}, True),
        ({"org.jetllm.l4t": "35,36.4"}, {"l4t": "36.4.3"}, True),
        ({"org.jetllm.arch": "amd64 arm64"}, {"arch": "aarch64"}, True),
        ({"org.jetllm.arch": "amd64"}, {"arch": "aarch64"}, False),
        ({"org.jetllm.arch": "amd64"}, {"arch": None}, True),
        ({"org.jetllm.compute-capability": "8.7"}, {"compute_capability": "11.0"}, False),
        ({"org.jetllm.compute-capability": "8.7"}, {"compute_capability": None}, True),
        ({"org.jetllm.compute-capability": "8.7 11.0"}, {"compute_capability": "11.0"}, True),
    ],
)
def test_labels_are_held_against_what_is_known(
    labels: dict[str, str], changes: dict[str, str | None], fits: bool
) -> None:
    """An empty label takes any machine; what a machine does not tell counts against it for L4T alone."""
    device: Device = dataclasses.replace(detect(BOARDS / "orin-nano-8gb-super"), **changes)  # type: ignore[arg-type]
    assert (why_unfit(labels, device) is None) == fits


def test_the_container_gets_no_more_than_it_needs(layout: Layout) -> None:
    """Its command has every restriction, and nothing that would make it root on the host."""
    argv = Engine(Config(runtime="nvidia"), layout).run_argv(CURRENT, groups=[44])
    command = " ".join(argv)
    for part in (
        "--read-only",
        "--cap-drop ALL",
        "--security-opt no-new-privileges",
        "--pids-limit 1024",
        "--cgroupns private",
    ):
        assert part in command
    assert "--publish 127.0.0.1:8080:8080" in command
    assert "--group-add 44" in command
    assert command.startswith("docker run --rm --name jetllm --runtime nvidia ")
    owner = layout.state.stat()
    assert f"--user {owner.st_uid}:{owner.st_gid}" in command
    assert not re.search(
        r"--privileged|--cap-add|--device|--pid|--ipc|--network|docker\.sock|dbus|jtop",
        command.replace("--pids-limit", ""),
    )
    mounts = [each for each in argv if each.startswith("type=bind")]
    assert {each.rpartition("target=")[2] for each in mounts} == {
        "/var/cache/jetllm,readonly",
        "/var/lib/jetllm",
        "/run/jetllm,readonly",
    }
    assert argv[-1] == "jetllm:current"


def test_the_configuration_decides_what_it_may(layout: Layout) -> None:
    """Writable store, address and runtime are the configuration's; podman wants the runtime first."""
    layout.settings.write_text("offline: true\n")
    config = Config(engine="podman", runtime="runc", host="::1", port=9000, writable_store=True)
    argv = Engine(config, layout).run_argv(CURRENT)
    assert argv[:4] == ["podman", "--runtime", "runc", "run"]
    assert "[::1]:9000:8080" in argv
    assert f"type=bind,source={layout.store},target=/var/cache/jetllm" in argv
    assert f"type=bind,source={layout.settings},target=/etc/jetllm/jetllm.yaml,readonly" in argv
    assert "JETLLM_CONFIG=/etc/jetllm/jetllm.yaml" in argv


def test_a_container_of_roots_is_refused(tmp_path: Path) -> None:
    """The container's user is the owner of its state; root, or no directory, is refused with the remedy."""
    layout = Layout(tmp_path)
    with pytest.raises(ImageError, match="systemd-tmpfiles"):
        Engine(Config(), layout).run_argv(CURRENT)
    layout.state.mkdir(parents=True)
    if layout.state.stat().st_uid == 0:
        with pytest.raises(ImageError, match="belongs to root"):
            Engine(Config(), layout).run_argv(CURRENT)


def test_the_engine_is_asked_and_understood(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids have one form; what is absent is None; labels are a dict; stopping what does not run is fine."""
    scripted = ScriptedEngine(tmp_path / "engine")
    monkeypatch.setenv("PATH", str(scripted.bin), prepend=":")
    scripted.image(CURRENT, org__jetllm__l4t="36.4")
    engine = Engine(Config(), layout)
    assert engine.image_id(CURRENT) == "sha256:1111"
    assert engine.labels(CURRENT) == {"org.jetllm.l4t": "36.4"}
    assert engine.image_id("jetllm:next") is None
    assert engine.labels("jetllm:next") == {}
    engine.stop("jetllm", 1)
    engine.remove("jetllm")
    with pytest.raises(ImageError, match="docker tag: unknown command: tag a b"):
        engine.tag("a", "b")


def test_an_engine_that_is_not_installed_or_hangs_is_told(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The message has the reason and the next command; much output neither blocks nor is kept."""
    monkeypatch.setenv("PATH", str(tmp_path))
    engine = Engine(Config(engine="podman"), layout)
    with pytest.raises(ImageError, match="podman image: No such file"):
        engine.image_id(CURRENT)
    program = tmp_path / "podman"
    program.write_text("#!/bin/sh\nexec /bin/sleep 30\n")
    program.chmod(0o755)
    with pytest.raises(ImageError, match=r"not done within 0\.2 s"):
        engine.load(tmp_path / "image.tar", timeout_s=0.2)
    program.write_text("#!/bin/sh\n/usr/bin/head -c 20000000 /dev/zero | /usr/bin/tr '\\0' x >&2\nexit 3\n")
    with pytest.raises(ImageError) as caught:
        engine.image_id(CURRENT)
    assert len(caught.value.message) < 1000


@pytest.mark.parametrize(
    ("said", "images"),
    [
        ("Loaded image: jetllm:0.2.0", 1),
        ("Loaded image(s): localhost/jetllm:0.2.0", 1),
        ("Loaded image ID: sha256:abc", 1),
        ("Getting image source signatures\nLoaded image: sha256:abc\n", 1),
        ("Loaded image: a:1\nLoaded image: b:1", 2),
        ("", 0),
    ],
)
def test_an_archive_has_one_image(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, said: str, images: int
) -> None:
    """Both engines' words are understood in all their forms; an archive of two images is refused."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    program = tmp_path / "docker"
    program.write_text(f"#!/bin/sh\ncase $1 in load) printf '%s\\n' '{said}' ;; *) echo abc ;; esac\n")
    program.chmod(0o755)
    engine = Engine(Config(), layout)
    if images == 1:
        assert engine.load(tmp_path / "image.tar") == "sha256:abc"
    else:
        with pytest.raises(ImageError, match=f"expected one image in it, got {images}"):
            engine.load(tmp_path / "image.tar")


def test_one_command_of_an_image_has_no_network_and_its_mounts(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What imports a bundle's models is as confined as the daemon, and reaches nobody."""
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    program = tmp_path / "docker"
    program.write_text(
        '#!/bin/sh\ncase $1 in run) echo "$@" ;; *) echo "No such container" >&2; exit 1 ;; esac\n'
    )
    program.chmod(0o755)
    mounts = [Mount(Path("/b"), "/bundle"), Mount(Path("/s"), "/store", writable=True)]
    output = Engine(Config(), layout).run_once(
        "jetllm:next", ["jetllm", "bundle", "import", "/bundle"], mounts
    )
    assert "--network none" in output
    assert "--read-only" in output
    assert "source=/b,target=/bundle,readonly" in output
    assert "source=/s,target=/store --network" in output
    assert output.endswith("jetllm:next jetllm bundle import /bundle\n")


@pytest.fixture
def answering() -> Iterator[tuple[int, list[tuple[int, bytes]]]]:
    """A server that gives the answers in a list, and the port it is on."""
    answers: list[tuple[int, bytes]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, data = answers.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(data)

        do_POST = do_GET

        def log_message(self, *_: object) -> None:
            """Say nothing."""

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server.server_port, answers
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.mark.parametrize(
    ("status", "data", "why"),
    [
        (
            500,
            b'{"error": {"message": "the worker crashed"}}',
            "answered 500 for a token: the worker crashed",
        ),
        (200, b'{"choices": []}', "without a token"),
        (
            200,
            b'{"choices": [{"message": {"content": ""}}], "usage": {"completion_tokens": 0}}',
            "without a token",
        ),
        (200, b"<html>", "does not answer /v1/chat/completions: JSONDecodeError"),
        (200, b"[]", "something else than"),
    ],
)
def test_an_answer_without_a_token_is_none(
    answering: tuple[int, list[tuple[int, bytes]]], status: int, data: bytes, why: str
) -> None:
    """Only a token is a token, and the error says what came instead."""
    port, answers = answering
    answers.append((status, data))
    with pytest.raises(NotReadyError, match=re.escape(why)):
        Daemon("0.0.0.0", port).canary()  # noqa: S104 - asked on loopback


def test_a_daemon_that_is_not_there_is_not_ready() -> None:
    """Nobody need catch anything: it is simply unreachable."""
    daemon = Daemon("127.0.0.1", 1)
    assert not daemon.live()
    ready, detail = daemon.ready()
    assert not ready
    assert detail["status"] == "unreachable"
    assert "does not answer /readyz" in json.dumps(detail)
