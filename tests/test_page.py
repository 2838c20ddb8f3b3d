"""The page as it is served: its files, their headers, and who gets them."""

from __future__ import annotations

import gzip
import json
import re
from html.parser import HTMLParser
from importlib import resources
from typing import Any

import pytest
from flask.testing import FlaskClient

from inference.api import create_app
from inference.api.page import ASSETS, INDEX, PAGE_PATHS
from inference.service import build_service
from inference.settings import load_settings
from tests.fake_service import FakeService, settings_with
from tests.page_service import PageService, model_row, variant_row

UI = resources.files("inference.api") / "ui"
BROWSER = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8"
KEY = "a-secret-key"
MOST_BYTES = 60_000


def client_of(**settings: Any) -> FlaskClient:
    """A client without a network."""
    return create_app(FakeService(settings=settings_with(**settings))).test_client()


def text_of(name: str) -> str:
    """One of the page's files."""
    return (UI / name).read_text(encoding="utf-8")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.in_label: list[dict[str, str | None]] = []
        self._label = False

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))
        self._label = self._label or tag == "label"
        if self._label:
            self.in_label.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        self._label = self._label and tag != "label"


def parsed() -> _Tags:
    """The page as a parser sees it."""
    parser = _Tags()
    parser.feed(text_of(INDEX))
    return parser


def tags() -> list[tuple[str, dict[str, str | None]]]:
    """Every element of the page with its attributes."""
    return parsed().found


# Who gets the page


def test_a_browser_gets_the_page_and_other_clients_do_not() -> None:
    """Clients of Ollama look for their words at the root; a browser asks for HTML by name."""
    client = client_of()
    page = client.get("/", headers={"Accept": BROWSER})
    assert (page.status_code, page.mimetype) == (200, "text/html")
    assert "<title>" in page.get_data(as_text=True)
    for accept in ("*/*", "application/json", ""):
        other = client.get("/", headers={"Accept": accept})
        assert (other.mimetype, other.get_data(as_text=True)) == ("text/plain", "Ollama is running")
        assert "Accept" in other.headers["Vary"]
    assert client.head("/", headers={"Accept": BROWSER}).status_code == 200


@pytest.mark.parametrize("key", [None, KEY])
def test_the_page_loads_without_a_key_and_the_api_does_not(key: str | None) -> None:
    """The page asks for the key; what it asks with the key stays behind the key."""
    client = client_of(api_key=key)
    for path in PAGE_PATHS:
        assert client.get(path, headers={"Accept": BROWSER}).status_code == 200, path
    refused = 401 if key else 200
    assert client.get("/jetllm/v1/status").status_code == refused
    assert client.get("/ui/other.js").status_code == (401 if key else 404)


def test_there_is_no_secret_in_the_page() -> None:
    """Anybody gets these bytes: they are the same whatever the settings are."""
    for path in sorted(PAGE_PATHS):
        with_key, without = client_of(api_key=KEY), client_of()
        got = with_key.get(path, headers={"Accept": BROWSER}).data
        assert got == without.get(path, headers={"Accept": BROWSER}).data
        assert KEY.encode() not in got


def test_a_page_of_another_origin_may_not_ask_for_the_assets() -> None:
    """The guards of the API hold for the page, too."""
    client = client_of()
    assert client.get("/ui/app.js", headers={"Origin": "http://evil.example"}).status_code == 403
    assert client.get("/", headers={"Accept": BROWSER, "Host": "evil.example"}).status_code == 421


# How it is sent


def test_the_policy_allows_only_this_daemon() -> None:
    """No inline script, no foreign host, no frame, no form: the header says so with every file."""
    for path in PAGE_PATHS:
        headers = client_of().get(path, headers={"Accept": BROWSER}).headers
        policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
        assert policy == {
            "default-src": "'none'",
            "script-src": "'self'",
            "style-src": "'self'",
            "connect-src": "'self'",
            "img-src": "'self' data:",
            "base-uri": "'none'",
            "form-action": "'none'",
            "frame-ancestors": "'none'",
        }
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"


def test_everything_together_is_small() -> None:
    """The page is at most 60 kB compressed, in all."""
    assert sum(len(gzip.compress((UI / name).read_bytes(), 9)) for name in (INDEX, *ASSETS)) <= MOST_BYTES


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_an_unchanged_file_is_not_sent_again(path: str) -> None:
    """Each file has an ETag and is asked for each time, so that an update is seen at once."""
    client = client_of()
    first = client.get(path, headers={"Accept": BROWSER})
    assert first.headers["Cache-Control"] == "no-cache"
    known = {"Accept": BROWSER, "If-None-Match": first.headers["ETag"]}
    again = client.get(path, headers=known)
    assert (again.status_code, again.data) == (304, b"")
    assert client.get(path, headers={**known, "If-None-Match": '"other"'}).status_code == 200


@pytest.mark.parametrize("path", sorted(PAGE_PATHS))
def test_it_is_compressed_for_whoever_takes_that(path: str) -> None:
    """Compressed and plain are one content with two ETags, and caches are told to keep them apart."""
    client = client_of()
    plain = client.get(path, headers={"Accept": BROWSER})
    packed = client.get(path, headers={"Accept": BROWSER, "Accept-Encoding": "gzip, deflate, br"})
    assert packed.headers["Content-Encoding"] == "gzip" and "Content-Encoding" not in plain.headers
    assert gzip.decompress(packed.data) == plain.data
    assert packed.headers["ETag"] != plain.headers["ETag"]
    assert "Accept-Encoding" in packed.headers["Vary"] and "Accept-Encoding" in plain.headers["Vary"]


@pytest.mark.parametrize(
    "path",
    [
        "/ui/../page.py",
        "/ui/..%2fpage.py",
        "/ui/%2e%2e/page.py",
        "/ui/%2e%2e%2f%2e%2e%2fservice.py",
        "/ui/ui/app.js",
        "/ui//app.js",
        "/ui/app.js%00.css",
        "/ui/index.html",
        "/ui/",
        "/ui",
    ],
)
def test_nothing_but_the_files_of_the_table_is_found(path: str) -> None:
    """A path is looked up in a table, never on the disk; what is not there is 404 in JSON."""
    response = client_of().get(path)
    assert (response.status_code, response.mimetype) == (404, "application/json")
    assert json.loads(response.data)["error"]["code"] == "not_found"


# What is in it


def test_the_table_names_the_files_that_are_there() -> None:
    """No file lies there unserved, and none is promised that is missing."""
    assert {each.name for each in UI.iterdir()} == {INDEX, *ASSETS}


def test_scripts_and_styles_are_files() -> None:
    """The policy refuses everything inline; so there is none."""
    for tag, attributes in tags():
        assert tag != "style"
        assert tag != "script" or attributes.get("src"), attributes
        assert not any(name == "style" or name.startswith("on") for name in attributes), attributes


def test_it_asks_only_this_daemon() -> None:
    """It works without internet: no address of another host is in any file, but for SVG's name."""
    for name in (INDEX, *ASSETS):
        hosts = set(re.findall(r"https?://[\w.-]+", text_of(name)))
        assert hosts <= {"http://www.w3.org"}, name


def test_no_text_is_ever_read_as_html() -> None:
    """None of the ways in which a browser makes elements or code of text is used."""
    ways = (
        r"innerHTML|outerHTML|insertAdjacent|document\.write|DOMParser|setHTML|\beval\(|new Function|srcdoc"
    )
    for name in ASSETS:
        assert not re.search(ways, text_of(name)), name


def test_what_scripts_look_for_is_there() -> None:
    """Every file that is imported is served, and every fixed id that is asked for is on the page."""
    ids = {attributes["id"] for _, attributes in tags() if "id" in attributes}
    for name in ASSETS:
        if name.endswith(".js"):
            assert {*re.findall(r'from "\./([\w.]+)"', text_of(name))} <= set(ASSETS), name
            assert {*re.findall(r'(?:byId|getElementById)\("([\w-]+)"\)', text_of(name))} <= ids, name
    assert len(ids) == sum("id" in attributes for _, attributes in tags())


def test_every_field_has_a_label() -> None:
    """A field is inside its label, or a label is for it."""
    page = parsed()
    labelled = {attributes.get("for") for tag, attributes in page.found if tag == "label"}
    for tag, attributes in page.found:
        if tag in ("input", "select", "textarea"):
            assert attributes in page.in_label or attributes["id"] in labelled, attributes


def test_the_tests_models_have_the_form_of_the_real_ones() -> None:
    """What the browser tests show are fields that the real service gives, so they cannot drift apart."""
    service = build_service(load_settings({"port": 0}))
    try:
        real = service.models()[0]
        device, status = service.device(), service.status()
    finally:
        service.close()
    assert set(model_row("x")) <= set(real)
    assert set(variant_row()) <= set(next(iter(real["variants"].values())))
    assert {key: set(value) for key, value in PageService().device().items()} == {
        key: set(value) for key, value in device.items()
    }
    assert {"workers", "queue", "memory", "state"} <= set(status)
