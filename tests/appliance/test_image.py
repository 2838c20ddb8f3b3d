"""The images: built on stand-ins for their bases, run with the rights that the appliance gives them."""

from __future__ import annotations

import contextlib
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.appliance import images
from tests.appliance.podman import EngineFailed, Podman
from tests.appliance.serving import MODEL, Container, serving, state_of
from tests.daemon_process import DaemonProcess

pytestmark = pytest.mark.appliance

PROMPT = "The capital of France is"
JETSON_IMAGE = "localhost/jetllm-test:jetson"
OURS_MAX_BYTES = 400 * 10**6


@pytest.fixture(scope="session")
def jetson_image(engine: Podman, jetson_base: str) -> str:
    """Our image for a Jetson, on the stand-in."""
    images.build(engine, "Dockerfile", JETSON_IMAGE)
    return JETSON_IMAGE


@pytest.fixture(scope="module", params=["cpu_image", "jetson_image"])
def container(
    request: pytest.FixtureRequest, engine: Podman, weights: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Container]:
    """One of our images, serving."""
    image = request.getfixturevalue(request.param)
    state = state_of(tmp_path_factory.mktemp("state") / "state")
    with serving(engine, image, weights, state) as started:
        yield started


def _python(container: Container, code: str) -> str:
    return container.engine.run("exec", container.identity, "python3", "-c", code)


def test_serves_the_tokens_of_a_daemon_outside(
    container: Container, smollm2_path: Path, tmp_path: Path
) -> None:
    """A greedy completion from the container is that of `jetllm serve` on this machine."""
    text = container.complete(PROMPT)
    assert text.strip()
    cache = smollm2_path.parents[1]
    with DaemonProcess(tmp_path / "outside", cache_dir=cache, offline="true") as daemon:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 12, "temperature": 0}
        status, answer = daemon.ask("POST", "/v1/completions", body)
    assert status == 200
    assert answer["choices"][0]["text"] == text


def test_asks_for_the_key(container: Container) -> None:
    """Who has no key gets nothing but the health checks."""
    connection = container.connection()
    with contextlib.closing(connection):
        connection.request("GET", "/v1/models")
        assert connection.getresponse().status == 401


def test_has_no_rights(container: Container) -> None:
    """Inside, every process is user 10001, without a capability and without a way to get one."""
    told = _python(container, "print(open('/proc/1/status').read())")
    status = dict(re.findall(r"(?m)^(\w+):\s+(.+)$", told))
    assert status["Uid"].split() == ["10001"] * 4
    assert {int(status[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb")} == {0}
    assert status["NoNewPrivs"] == "1"


@pytest.mark.parametrize(
    "path", ["/", "/etc", "/etc/jetllm", "/opt/jetllm", "/usr/local/bin", "/var/cache/jetllm"]
)
def test_cannot_write(container: Container, path: str) -> None:
    """The root and the store are read-only: not even their owner may write there."""
    code = f"import os; print(os.statvfs({path!r}).f_flag & os.ST_RDONLY)"
    assert _python(container, code) == "1"
    done = container.engine.try_run("exec", container.identity, "touch", f"{path}/new")
    assert "Read-only file system" in done.stderr


def test_health_check_passes(container: Container) -> None:
    """A container that is ready is healthy for the engine."""
    assert container.engine.try_run("healthcheck", "run", container.identity).returncode == 0


def test_knows_what_it_is(container: Container, request: pytest.FixtureRequest) -> None:
    """The daemon inside knows its image's name, which the labels and the supervisor know too."""
    key = f"--env=JETLLM_API_KEY={container.key}"
    told = container.engine.run("exec", key, container.identity, "jetllm", "device", "--json")
    device = json.loads(told)["static"]
    tail = "cpu" if "cpu_image" in request.node.callspec.id else "r36.4.0"
    labels = container.engine.inspect(container.identity)["Config"]["Labels"]
    assert device["image"] == f"jetllm:{labels['org.opencontainers.image.version']}-{tail}"
    assert device["in_container"] is True
    assert labels["org.jetllm.arch"] == images.architecture()
    assert labels["org.jetllm.l4t"] == ("" if tail == "cpu" else "36.4,36.5")


def test_stop_drains(engine: Podman, cpu_image: str, weights: Path, tmp_path: Path) -> None:
    """`stop` lets the request that is under way end as it would have, and the daemon ends with 0."""
    state = state_of(tmp_path / "state")
    with serving(engine, cpu_image, weights, state) as container:
        body = {"model": MODEL, "prompt": PROMPT, "max_tokens": 200, "temperature": 0, "stream": True}
        connection = container.connection()
        with contextlib.closing(connection):
            connection.request(
                "POST", "/v1/completions", json.dumps(body | {"ignore_eos": True}), container.headers
            )
            response = connection.getresponse()
            first = response.readline()
            with subprocess.Popen(
                ["podman", "stop", "--time", "40", container.identity], stdout=subprocess.DEVNULL
            ) as stop:
                lines = [line for line in (first, *response) if line.strip()]
                assert stop.wait(60) == 0
        assert lines[-1].strip() == b"data: [DONE]"
        assert any(b'"finish_reason":"length"' in line.replace(b" ", b"") for line in lines)
        assert engine.inspect(container.identity)["State"]["ExitCode"] == 0


def test_without_a_key_it_says_what_to_do(engine: Podman, cpu_image: str, tmp_path: Path) -> None:
    """A container that anybody could ask does not start: the refusal names the key."""
    state = state_of(tmp_path / "state")
    done = engine.try_run("run", "--rm", "--read-only", f"--volume={state}:/var/lib/jetllm", cpu_image)
    assert done.returncode not in (0, 125, 126, 127)
    assert "without an API key" in done.stderr
    assert "hint:" in done.stderr


def test_any_user_will_do(engine: Podman, cpu_image: str, weights: Path, tmp_path: Path) -> None:
    """The supervisor gives the user: one that the image has never heard of serves as well."""
    state = state_of(tmp_path / "state", 54321)
    with serving(engine, cpu_image, weights, state, user=54321) as container:
        assert container.complete(PROMPT, 4).strip()


def test_reads_what_the_host_knows(engine: Podman, cpu_image: str, tmp_path: Path) -> None:
    """device.json tells the daemon the board; settings are mounted over the image's empty file."""
    board = Path(__file__).resolve().parents[1] / "fixtures/devices/container-cgroup2/run/jetllm"
    settings = tmp_path / "jetllm.yaml"
    settings.write_text("keep_alive_s: nonsense\n")
    device = json.loads(
        engine.run(
            "run",
            "--rm",
            "--read-only",
            f"--volume={board}:/run/jetllm:ro",
            cpu_image,
            "jetllm",
            "device",
            "--json",
        )
    )
    assert device["static"]["board"] == json.loads((board / "device.json").read_text())["board"]
    done = engine.try_run("run", "--rm", f"--volume={settings}:/etc/jetllm/jetllm.yaml:ro", cpu_image)
    assert done.returncode != 0
    assert "keep_alive_s" in done.stderr


def test_broken_image_is_never_ready(
    engine: Podman, broken_image: str, weights: Path, tmp_path: Path
) -> None:
    """What the other tests take for a failed update listens, and its health check fails."""
    with (
        pytest.raises(AssertionError, match="did not come true"),
        serving(engine, broken_image, weights, state_of(tmp_path / "state"), ready_s=15.0),
    ):
        pass


@pytest.mark.parametrize("container", ["cpu_image"], indirect=True)
def test_wrong_image_answers_otherwise(
    engine: Podman, container: Container, wrong_image: str, weights: Path, tmp_path: Path
) -> None:
    """What the other tests take for an update with a defect becomes ready and gives other tokens."""
    with serving(engine, wrong_image, weights, state_of(tmp_path / "state")) as other:
        assert other.complete(PROMPT) != container.complete(PROMPT)


def test_second_image_has_another_version(engine: Podman, second_image: str, cpu_image: str) -> None:
    """An update has another image id and another version."""
    first, second = engine.inspect(cpu_image), engine.inspect(second_image)
    assert first["Id"] != second["Id"]
    label = "org.opencontainers.image.version"
    assert first["Labels"][label] != second["Labels"][label] == images.SECOND_VERSION


@pytest.mark.parametrize("image", ["cpu_image", "jetson_image"])
def test_nothing_of_the_build_stays(engine: Podman, image: str, request: pytest.FixtureRequest) -> None:
    """Neither a configuration of pip, nor the secret, nor a place that packages came from is in the image."""
    name = request.getfixturevalue(image)
    told = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True
    ).stdout
    places = [images.WHEELS_PLACE, *re.findall(r"https?://(?:[^@/'\s]*@)?([^/'\s]+)", told)]
    found = engine.inspect(name)
    # The stand-in for a Jetson's image has a variable for pip, as the published one.
    assert [each for each in found["Config"]["Env"] if each.startswith("PIP_")] in (
        [],
        ["PIP_INDEX_URL=http://127.0.0.1:9/gone"],
    )
    assert not [place for place in places if place in json.dumps(found)]
    paths = "/run/secrets/pip /build /etc/pip.conf"
    sought = "|".join(map(re.escape, places))
    listing = f"ls -d {paths} 2>/dev/null; (cd /root && ls -d .config .cache .pip 2>/dev/null)"
    script = f"{listing}; grep -rlE --exclude=METADATA '{sought}' /opt /etc /usr/local"
    assert engine.try_run("run", "--rm", "--user=0:0", name, "sh", "-c", script).stdout == ""


def test_base_of_the_jetson_stays_as_it_was(engine: Podman, jetson_base: str, jetson_image: str) -> None:
    """No file of the base's packages changes; ours come before them on the path, and MLC still imports."""
    listing = (
        "sh",
        "-c",
        f"find {images.SITE} {images.SOURCES} -type f ! -name '*.pyc' | sort | xargs sha256sum",
    )
    assert engine.run("run", "--rm", jetson_image, *listing) == engine.run(
        "run", "--rm", jetson_base, *listing
    )
    shown = "torch.__version__, transformers.__version__, click.__file__"
    code = f"import click, mlc_llm, torch, transformers; print({shown})"
    told = engine.run("run", "--rm", jetson_image, "python3", "-c", code).split()
    assert told[:2] == [images.OLD_PACKAGES["torch"], images.OLD_PACKAGES["transformers"]]
    assert told[2].startswith("/opt/jetllm/")


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ({"mlc": False}, "image: the base image has no usable mlc_llm: ModuleNotFoundError"),
        ({"cuda": False}, "image: the base image's TVM was built without CUDA"),
    ],
    ids=["mlc", "cuda"],
)
def test_base_without_mlc_or_cuda_ends_the_build(engine: Podman, lacking: dict[str, bool], said: str) -> None:
    """The build on a base of no use ends at its first step, with a sentence and with what to do."""
    base = images.build_jetson_base(engine, "localhost/jetllm-test:no-use", **lacking)
    with pytest.raises(EngineFailed, match=re.escape(said)) as caught:
        images.build(engine, "Dockerfile", "localhost/jetllm-test:never", "--build-arg", f"BASE_IMAGE={base}")
    assert "hint: use an image of dustynv/mlc" in str(caught.value)
    assert not engine.has("localhost/jetllm-test:never")


def test_ours_is_small(engine: Podman, base_image: str, cpu_image: str) -> None:
    """What we add to the base is our dependencies and not their build."""
    added = engine.inspect(cpu_image)["Size"] - engine.inspect(base_image)["Size"]
    assert 0 < added < OURS_MAX_BYTES
