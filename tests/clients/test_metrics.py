"""/metrics after real traffic: what Prometheus' own parsers and promtool say of it."""

from __future__ import annotations

import http.client
import itertools
import shutil
import subprocess
from typing import Any

import openai
import pytest
from prometheus_client import parser
from prometheus_client.openmetrics import parser as openmetrics_parser

from tests.daemon_process import MODEL, DaemonProcess

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
CHAT = "/v1/chat/completions"
parse_text: Any = parser.text_string_to_metric_families
parse_openmetrics: Any = openmetrics_parser.text_string_to_metric_families
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(daemon: DaemonProcess, accept: str) -> tuple[str, str]:
    """Return the content type and the text, as a scraper that accepts this gets them."""
    connection = http.client.HTTPConnection("127.0.0.1", daemon.port, timeout=30)
    try:
        connection.request("GET", "/metrics", headers={"Accept": accept})
        response = connection.getresponse()
        assert response.status == 200
        return response.headers["Content-Type"], response.read().decode()
    finally:
        connection.close()


def families(daemon: DaemonProcess) -> list[Any]:
    return list(parse_openmetrics(scrape(daemon, OPENMETRICS)[1]))


def samples(daemon: DaemonProcess) -> Samples:
    found = (sample for family in families(daemon) for sample in family.samples)
    return {(sample.name, frozenset(sample.labels.items())): sample.value for sample in found}


def value(of: Samples, name: str, **labels: str) -> float:
    return of.get((name, frozenset(labels.items())), 0.0)


def refusals(of: Samples) -> float:
    return sum(
        number
        for (name, labels), number in of.items()
        if name == "jetllm_requests_total" and ("code", "400") in labels
    )


def drive(daemon: DaemonProcess) -> tuple[int, int]:
    """Send one whole chat, one stream and one refusal; return the prompt and generated tokens."""
    with openai.OpenAI(base_url=f"{daemon.url}/v1", api_key="none", max_retries=0) as client:
        asked: Any = {"model": MODEL, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 8}
        usages = [client.chat.completions.create(**asked).usage]
        streamed = {**asked, "stream": True, "stream_options": {"include_usage": True}}
        usages += [chunk.usage for chunk in client.chat.completions.create(**streamed) if chunk.usage]
        with pytest.raises(openai.BadRequestError):
            client.chat.completions.create(**asked, temperature=9)
    return sum(usage.prompt_tokens for usage in usages), sum(usage.completion_tokens for usage in usages)


def test_counters_grow_by_what_clients_were_told(daemon: DaemonProcess) -> None:
    """Requests by status, and tokens as in the answers' usage: a bill made from metrics would be right."""
    before = samples(daemon)
    prompt_tokens, generated_tokens = drive(daemon)
    after = samples(daemon)

    def grown(name: str, **labels: str) -> float:
        return value(after, name, **labels) - value(before, name, **labels)

    assert grown("jetllm_requests_total", model=MODEL, route=CHAT, code="200") == 2
    assert refusals(after) - refusals(before) == 1
    assert grown("jetllm_prompt_tokens_total", model=MODEL) == prompt_tokens
    assert grown("jetllm_generated_tokens_total", model=MODEL) == generated_tokens
    assert grown("jetllm_time_to_first_token_seconds_count", model=MODEL) == 2
    assert value(after, "jetllm_model_state", model=MODEL, state="ready") == 1


def test_histograms_add_up(daemon: DaemonProcess) -> None:
    """Bounds rise, counts never fall, the last bucket is the count, and there is a sum."""
    drive(daemon)
    series: dict[tuple[str, str], dict[float, float]] = {}
    for family in (family for family in families(daemon) if family.type == "histogram"):
        for row in family.samples:
            le = row.labels.pop("le", "-inf" if row.name.endswith("_sum") else "nan")
            if row.name.endswith(("_bucket", "_sum")):
                series.setdefault((family.name, str(row.labels)), {})[float(le)] = row.value
            elif row.name.endswith("_count"):
                assert list(series[family.name, str(row.labels)].items())[-1] == (float("inf"), row.value)
    assert len(series) >= 3
    for found in series.values():
        assert found.pop(float("-inf")) > 0
        assert all(low < high for low, high in itertools.pairwise(found))
        assert all(low <= high for low, high in itertools.pairwise(found.values()))


def test_both_formats_tell_the_same(daemon: DaemonProcess) -> None:
    """The old text and OpenMetrics are two spellings of one set of families."""
    plain_type, plain = scrape(daemon, "text/plain")
    open_type, opened = scrape(daemon, OPENMETRICS)
    assert plain_type.startswith("text/plain") and open_type.startswith("application/openmetrics-text")
    names = {family.name for family in parse_text(plain)}
    # OpenMetrics has a family without _total, and a creation time inside it.
    assert {name for name in names if not name.endswith("_created")} == {
        family.name for family in parse_openmetrics(opened)
    }
    assert opened.endswith("# EOF\n")


def test_promtool_finds_nothing_to_say(daemon: DaemonProcess) -> None:
    """`promtool check metrics`: names, units, types and help texts are as Prometheus wants them."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("needs promtool: sudo apt-get install prometheus")
    drive(daemon)
    text = scrape(daemon, "text/plain")[1]
    done = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
