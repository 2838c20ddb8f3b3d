"""A fleet: two real daemons with SmolLM2 behind a real HAProxy with the configuration that we ship."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.appliance import haproxy
from tests.appliance.cable import FAR, Cable, why_no_cable
from tests.appliance.fleet import (
    HOST,
    NAMES,
    READY_S,
    Appliance,
    Fleet,
    Load,
    add_key,
    chat,
    rest_of,
    started,
)
from tests.appliance.haproxy import HAProxy
from tests.conftest import wait_until
from tests.daemon_process import MODEL

pytestmark = pytest.mark.appliance

NO_HAPROXY = "haproxy is not installed: apt-get install haproxy"


@pytest.fixture(autouse=True)
def _haproxy_is_here() -> None:
    if haproxy.program() is None:
        pytest.skip(NO_HAPROXY)


@pytest.fixture(scope="module")
def fleet(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """A fleet for the tests that leave it as it is."""
    if haproxy.program() is None:
        pytest.skip(NO_HAPROXY)
    with started(tmp_path_factory.mktemp("fleet"), smollm2_path) as made:
        yield made


@pytest.fixture
def make_fleet(smollm2_path: Path, tmp_path: Path) -> Iterator[Callable[..., Fleet]]:
    """Start a fleet of the test's own."""
    with contextlib.ExitStack() as ending:
        yield lambda **settings: ending.enter_context(started(tmp_path, smollm2_path, **settings))


def test_configuration_is_one_that_haproxy_takes() -> None:
    """HAProxy itself finds no fault with the file as it is shipped."""
    found = haproxy.program()
    assert found is not None
    done = subprocess.run(
        [found, "-c", "-f", str(haproxy.CONFIGURATION)], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr
    assert "[WARNING]" not in done.stderr


def test_no_accepted_request_is_lost_when_an_appliance_is_killed(make_fleet: Callable[..., Fleet]) -> None:
    """SIGKILL under load: every whole answer is a 200, a stream is whole or visibly cut; it comes back."""
    fleet = make_fleet()
    killed = fleet.appliances["jetson-1"]
    with fleet.stream_on("jetson-1", 3000) as begun, Load(fleet) as load:
        load.wait_for(6)
        # Three of the four at the most are streams.
        wait_until(lambda: killed.running(fleet.key) >= 4, "work on it")
        os.kill(killed.pid, signal.SIGKILL)
        killed_s = time.monotonic()
        assert rest_of(begun) == "cut"
        assert time.monotonic() - killed_s < 1
        fleet.wait_until_down("jetson-1")
        load.wait_for(12)
    killed.stop()
    assert set(load.ends(streams=False)) == {(200, "whole")}
    assert set(load.ends(streams=True)) <= {(200, "whole"), (200, "cut")}
    assert fleet.balancer.count("wretr") > 0, "nothing was sent again: nothing was proven"
    with killed:
        fleet.wait_until_up("jetson-1")
        assert {fleet.ask(4).appliance for _ in range(8)} == set(NAMES)


def test_draining_appliance_loses_nothing_at_all(make_fleet: Callable[..., Fleet]) -> None:
    """SIGTERM under load: begun streams end whole, and everybody else is answered too."""
    fleet = make_fleet(drain_timeout_s=120)
    stopped = fleet.appliances["jetson-1"]
    with fleet.stream_on("jetson-1", 400) as begun, Load(fleet) as load:
        load.wait_for(6)
        stopped.process.send_signal(signal.SIGTERM)
        assert rest_of(begun) == "whole"
        assert stopped.process.wait(READY_S) == 0
        load.wait_for(8)
    stopped.stop()
    assert set(load.ends(streams=False) + load.ends(streams=True)) == {(200, "whole")}


def test_drain_that_is_too_short_costs_only_begun_streams(make_fleet: Callable[..., Fleet]) -> None:
    """When the drain's time is up, another gives the whole answers; begun streams end in an error event."""
    fleet = make_fleet(drain_timeout_s=0.1)
    stopped = fleet.appliances["jetson-1"]
    with fleet.stream_on("jetson-1", 3000) as begun, Load(fleet, streams=0) as load:
        load.wait_for(4)
        wait_until(lambda: stopped.running(fleet.key) >= 3, "work on it")
        stopped.process.send_signal(signal.SIGTERM)
        assert rest_of(begun) == "told"
        load.wait_for(8)
    stopped.stop()
    assert set(load.ends(streams=False)) == {(200, "whole")}


def test_hung_appliance_gets_no_work_and_its_requests_are_answered(make_fleet: Callable[..., Fleet]) -> None:
    """A daemon that stands still is out after its checks; killed, as its watchdog does, it loses nothing."""
    fleet = make_fleet()
    hung = fleet.appliances["jetson-1"]
    with Load(fleet, streams=0) as load:
        load.wait_for(4)
        wait_until(lambda: hung.running(fleet.key) >= 2, "work on it")
        os.kill(hung.pid, signal.SIGSTOP)
        fleet.wait_until_down("jetson-1")
        assert {fleet.ask(4).appliance for _ in range(4)} == {"jetson-2"}
        os.kill(hung.pid, signal.SIGKILL)
    hung.stop()
    assert set(load.ends(streams=False)) == {(200, "whole")}


def test_key_of_one_appliance_is_that_of_all(fleet: Fleet) -> None:
    """A key that was added on one passes on every appliance that has its keys.json, and no other does."""
    for appliance in fleet.appliances.values():
        for key, status in ((fleet.key, 200), ("wrong", 401)):
            assert appliance.chat("Hi", max_tokens=1)[0] == 401
            headers = {"Authorization": f"Bearer {key}"}
            assert appliance.ask("POST", "/v1/chat/completions", chat(1), headers)[0] == status


@pytest.fixture
def cable() -> Iterator[Cable]:
    """A cable with nobody at its far end yet."""
    if (reason := why_no_cable()) is not None:
        pytest.skip(reason)
    with Cable() as laid:
        yield laid


def test_appliance_whose_cable_is_pulled_loses_nothing(
    cable: Cable, smollm2_path: Path, tmp_path: Path
) -> None:
    """Nobody says goodbye: once its connections count as dead, its whole answers are given by another."""
    key = add_key(tmp_path / "far")
    shutil.copytree(tmp_path / "far", tmp_path / "near")
    far = Appliance(tmp_path / "far", smollm2_path, host=FAR)
    near = Appliance(tmp_path / "near", smollm2_path)
    with contextlib.ExitStack() as ending:
        with cable.far_end():
            ending.enter_context(far)
        ending.enter_context(near)
        addresses = {"jetson-1": f"{FAR}:{far.at}", "jetson-2": f"127.0.0.1:{near.at}"}
        fleet = Fleet({}, ending.enter_context(HAProxy(tmp_path, addresses)), key)
        fleet.wait_until_up()
        with Load(fleet, whole=3, streams=0, tokens=48) as load:
            wait_until(lambda: fleet.balancer.rows()["jetson-1"]["scur"] != "0", "work on it")
            cable.pull()
            # 11 s for what was being computed (srvtcpka); what was sent half, or before the checks noticed
            # (4 s), has 10 s from then on (tcp-ut); the rest is for a busy machine. Else it would be 610 s.
            wait_until(lambda: fleet.balancer.rows()["jetson-1"]["scur"] == "0", "its end", 25)
            load.wait_for(3)
        assert set(load.ends(streams=False)) == {(200, "whole")}
        assert load.answers[-1][1].appliance == "jetson-2"


def test_client_that_leaves_ends_its_generation_behind_the_balancer(fleet: Fleet) -> None:
    """Whoever hangs up frees the appliance, whether a token had come or not."""
    first = fleet.appliances["jetson-1"]
    with fleet.stream_on("jetson-1", 3000):
        assert first.running(fleet.key) == 1
    wait_until(lambda: first.running(fleet.key) == 0, "the stream's end", 2)
    with fleet.connection() as silent:
        silent.request(
            "POST", "/v1/chat/completions", json.dumps(chat(3000)),
            {"Host": HOST, "Authorization": f"Bearer {fleet.key}", "Content-Type": "application/json"},
        )  # fmt: skip
        wait_until(lambda: running(fleet) == 1, "work")
    wait_until(lambda: running(fleet) == 0, "its end", 2)


def running(fleet: Fleet) -> int:
    """How many requests the fleet computes."""
    return sum(appliance.running(fleet.key) for appliance in fleet.appliances.values())


def test_what_changes_one_appliance_is_not_for_the_fleet(fleet: Fleet) -> None:
    """Pull, delete and the like do not pass; questions and lists do."""
    headers = {"Host": HOST, "Authorization": f"Bearer {fleet.key}", "Content-Type": "application/json"}
    expected = {
        ("POST", f"/jetllm/v1/models/{MODEL}/pull"): 404,
        ("DELETE", f"/jetllm/v1/models/{MODEL}"): 404,
        ("GET", "/jetllm/v1/status"): 404,
        ("GET", "/metrics"): 404,
        ("DELETE", "/v1/models"): 404,
        ("GET", "/v1/models"): 200,
        ("GET", f"/v1/models/{MODEL}"): 200,
    }
    found = {}
    for method, path in expected:
        with fleet.connection() as connection:
            connection.request(method, path, None, headers)
            response = connection.getresponse()
            response.read()
            found[method, path] = response.status
    assert found == expected


def test_who_guesses_keys_is_stopped_at_the_balancer(fleet: Fleet) -> None:
    """More than 20 wrong keys in a minute: 429 for that address, and no other client notices."""
    assert fleet.ask(2).end == "whole"
    assert fleet.ask(2).end == "whole"
    statuses = []
    for _ in range(23):
        with fleet.connection(source="127.0.0.2") as connection:
            response = fleet.request(connection, chat(2), key="wrong")
            response.read()
            statuses.append(response.status)
    assert statuses[:20] == [401] * 20
    assert statuses[-1] == 429
    assert {fleet.ask(2).status for _ in range(4)} == {200}
