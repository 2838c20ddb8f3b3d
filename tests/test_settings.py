"""Settings: where a value comes from, what is refused and in which words, and what a worker inherits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from pydantic import ValidationError

from inference.errors import SettingsError
from inference.settings import Settings, load_settings, settings_table, worker_environment

PAGE = Path(__file__).resolve().parent.parent / "docs/settings.md"
DEFAULTS = Settings.model_validate({})
SECRET = "hunter2-correct-horse"  # noqa: S105

Load = Callable[..., Settings]


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Load:
    """Load settings from *yaml* in a directory of the test's own, an environment and flags."""
    monkeypatch.chdir(tmp_path)

    def go(yaml: str | bytes | None = None, env: Mapping[str, str] | None = None, **flags: Any) -> Settings:
        if yaml is not None:
            (tmp_path / "jetllm.yaml").write_bytes(yaml if isinstance(yaml, bytes) else yaml.encode())
        return load_settings(flags, environ=env or {})

    return go


def refusal(load: Load, *arguments: Any, **flags: Any) -> str:
    """The message with which *load* refuses."""
    with pytest.raises(SettingsError) as caught:
        load(*arguments, **flags)
    return caught.value.message


# Where a value comes from


def test_defaults_hold_where_nothing_is_given(load: Load) -> None:
    """Without a file, a variable or a flag, every setting has the default of its field."""
    assert load() == DEFAULTS


@pytest.mark.parametrize(
    ("yaml", "env", "flags", "expected"),
    [
        ("port: 1", {}, {}, 1),
        ("port: 1", {"JETLLM_PORT": "2"}, {}, 2),
        ("port: 1", {"JETLLM_PORT": "2"}, {"port": "3"}, 3),
        ("port: 1", {}, {"port": 0}, 0),
        (None, {"JETLLM_PORT": "2"}, {}, 2),
        (None, {}, {"port": "3"}, 3),
    ],
)
def test_flag_goes_before_variable_before_file(
    load: Load, yaml: str | None, env: dict[str, str], flags: dict[str, Any], expected: int
) -> None:
    """A flag wins over a JETLLM_* variable, which wins over jetllm.yaml, which wins over the default."""
    assert load(yaml, env, **flags).port == expected


def test_sources_add_up(load: Load) -> None:
    """A source speaks only of the settings that it names."""
    found = load("slots: 2\nport: 1", {"JETLLM_THREADS": "3"}, speed="fast")
    assert (found.slots, found.port, found.threads, found.speed) == (2, 1, 3, "fast")


@pytest.mark.parametrize(
    ("yaml", "env", "flags"),
    [
        ("cache_dir:\nthreads: null", {}, {}),
        ("cache_dir: ''", {"JETLLM_THREADS": "", "JETLLM_CACHE_DIR": ""}, {}),
        (None, {}, {"threads": None, "cache_dir": ""}),
        ("", {}, {}),
        ("# nothing but a comment", {}, {}),
    ],
)
def test_empty_value_is_no_value(load: Load, yaml: str | None, env: dict[str, str], flags: Any) -> None:
    """An empty variable, flag or line changes nothing; above all it is not the working directory."""
    assert load(yaml, env, **flags) == DEFAULTS


def test_higher_source_can_empty_a_list(load: Load) -> None:
    """A lone comma is the empty list, which an empty variable is not."""
    assert load("preload: [a]", {"JETLLM_PRELOAD": ""}).preload == ("a",)
    assert load("preload: [a]", {"JETLLM_PRELOAD": ","}).preload == ()


def test_file_is_named_by_argument_then_variable_then_place(load: Load, tmp_path: Path) -> None:
    """--config wins over JETLLM_CONFIG, which wins over ./jetllm.yaml."""
    for port, name in enumerate(["flag.yaml", "variable.yaml", "jetllm.yaml"], start=1):
        (tmp_path / name).write_text(f"port: {port}")
    env = {"JETLLM_CONFIG": str(tmp_path / "variable.yaml")}
    assert load_settings(config=tmp_path / "flag.yaml", environ=env).port == 1
    assert load_settings(environ=env).port == 2
    assert load_settings(environ={"JETLLM_CONFIG": ""}).port == 3


def test_home_is_expanded(load: Load, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A path may begin with ~, that of the settings file too: systemd does not expand it."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("cache_dir: ~/weights\nstate_dir: ~/state\nregistry: ~/models.json")
    found = load_settings(environ={"JETLLM_CONFIG": "~/mine.yaml"})
    paths = (found.cache_path, found.state_path, found.registry_path)
    assert paths == (tmp_path / "weights", tmp_path / "state", tmp_path / "models.json")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ({"yaml": "preload: [a, b]"}, ("a", "b")),
        ({"yaml": "preload: a, b"}, ("a", "b")),
        ({"yaml": "preload: a"}, ("a",)),
        ({"yaml": "preload: []"}, ()),
        ({"env": {"JETLLM_PRELOAD": " a ,b,, "}}, ("a", "b")),
        ({"preload": ("a", "b")}, ("a", "b")),
        ({"preload": ("a,b", "c")}, ("a", "b", "c")),
    ],
)
def test_list_is_parted_at_commas(load: Load, source: dict[str, Any], expected: tuple[str, ...]) -> None:
    """A list is written with commas anywhere, as a YAML list, or as a flag that is repeated."""
    assert load(**source).preload == expected


@pytest.mark.parametrize(
    ("text", "expected"), [("true", True), ("1", True), ("yes", True), ("off", False), ("0", False)]
)
def test_boolean_is_written_in_words(load: Load, text: str, expected: bool) -> None:
    """A variable says true or false in the usual words."""
    assert load(None, {"JETLLM_OFFLINE": text}).offline is expected


# What is refused


@pytest.mark.parametrize(
    ("yaml", "env", "flags", "message"),
    [
        ("prot: 1", {}, {}, "jetllm.yaml: prot: unknown setting; did you mean 'port'?"),
        (None, {"JETLLM_PROT": "1"}, {}, "JETLLM_PROT: unknown setting; did you mean 'port'?"),
        (None, {"JETLLM_port": "1"}, {}, "JETLLM_port: unknown setting; did you mean 'port'?"),
        (None, {}, {"keep_alive": 1}, "flag --keep-alive: unknown setting; did you mean 'keep_alive_s'?"),
        ("xyzzy: 1", {}, {}, "jetllm.yaml: xyzzy: unknown setting"),
        ("1: 1", {}, {}, "jetllm.yaml: 1: unknown setting"),
        ("prot:", {}, {}, "jetllm.yaml: prot: unknown setting; did you mean 'port'?"),
        ("port: 1\nport: 2", {}, {}, "jetllm.yaml: port: expected once, got 2 times"),
    ],
)
def test_unknown_name_is_refused_with_a_guess(
    load: Load, yaml: str | None, env: dict[str, str], flags: dict[str, Any], message: str
) -> None:
    """A name that is no setting is an error wherever it stands, and the likely one is named."""
    assert refusal(load, yaml, env, **flags) == message


@pytest.mark.parametrize(
    ("yaml", "message"),
    [
        ("port: 65536", "port: expected a whole number, 0 to 65535, got 65536"),
        ("port: -1", "port: expected a whole number, 0 to 65535, got -1"),
        ("port: http", "port: expected a whole number, 0 to 65535, got 'http'"),
        ("threads: 2.5", "threads: expected a whole number, 1 to 256, got 2.5"),
        ("threads: 1e2", "threads: expected a whole number, 1 to 256, got '1e2'"),
        ("threads: true", "threads: expected a whole number, 1 to 256, got True"),
        ("keep_alive_s: .nan", "keep_alive_s: expected a number, -1 to 31536000, got nan"),
        ("keep_alive_s: .inf", "keep_alive_s: expected a number, -1 to 31536000, got inf"),
        ("stall_timeout_s: 0", "stall_timeout_s: expected a number, above 0, to 3600, got 0"),
        ("speed: Fast", "speed: expected one of fast, balanced, quality, got 'Fast'"),
        ("offline: maybe", "offline: expected true or false, got 'maybe'"),
        ("host: 5", "host: expected text, got 5"),
        ("preload: {a: 1}", "preload: expected a list of names, got {'a': 1}"),
        ("preload: [a, 1]", "preload: expected a list of names, got ['a', 1]"),
        ("cache_dir: [a]", "cache_dir: expected text, got ['a']"),
    ],
)
def test_bad_value_names_what_was_wanted_and_found(load: Load, yaml: str, message: str) -> None:
    """The message has where it stands, what is wanted with its range, and what was found."""
    assert refusal(load, yaml) == f"jetllm.yaml: {message}"


def test_long_value_is_cut_short(load: Load) -> None:
    """A value of a megabyte does not fill the terminal."""
    assert len(refusal(load, f"port: '{'9' * 1_000_000}'")) < 200


def test_every_error_is_told_at_once(load: Load) -> None:
    """Unknown names and bad values of all sources come together, each on a line of its own."""
    message = refusal(load, "prot: 1\nslots: 0", {"JETLLM_PORT": "x", "JETLLM_NO": "1"}, speed="slow")
    origins = [line.split(": ")[0] for line in message.splitlines()]
    assert origins == ["jetllm.yaml", "JETLLM_NO", "JETLLM_PORT", "jetllm.yaml", "flag --speed"]


def test_overridden_value_is_not_looked_at(load: Load) -> None:
    """Only the value in force has to be good."""
    assert load("port: x", {"JETLLM_PORT": "1"}).port == 1


def test_range_holds_at_its_ends(load: Load) -> None:
    """The ends of a closed range are inside it, the end of an open one is not."""
    ends = {"port": 65535, "slots": 32, "keep_alive_s": -1, "min_residency_s": 0, "stall_timeout_s": 3600}
    assert load(**ends).model_dump(include=set(ends)) == ends
    for name, value in {"slots": 33, "keep_alive_s": -1.5, "stall_timeout_s": 0.0}.items():
        assert name.replace("_", "-") in refusal(load, **{name: value})


def test_settings_are_frozen() -> None:
    """A value cannot be changed once it is loaded."""
    with pytest.raises(ValidationError):
        DEFAULTS.port = 1


# A file that is none


@pytest.mark.parametrize(
    "yaml",
    [
        b"\xff\xfe\x00",
        b"\x00",
        "[" * 5000,
        "port: 2024-13-45",
        "port: !!int abc",
        f"port: {'9' * 5000}",
        "a: !!python/object/apply:os.getpid []",
        "? [a]\n: 1",
        "a: 'b",
        "\tport: 1",
        "port: 1\n---\nport: 2",
    ],
    ids=lambda yaml: repr(yaml[:20]),
)
def test_what_is_not_yaml_is_refused(load: Load, yaml: str | bytes) -> None:
    """Text that YAML cannot read, or that would run code, is one line with the file's name."""
    message = refusal(load, yaml)
    assert message.startswith("jetllm.yaml")
    assert message.endswith("expected YAML in UTF-8")
    assert "\n" not in message


@pytest.mark.parametrize(("yaml", "kind"), [("- port", "list"), ("port", "str"), ("1", "int")])
def test_file_without_names_is_refused(load: Load, yaml: str, kind: str) -> None:
    """A file whose top is not a mapping says what it is instead."""
    assert refusal(load, yaml) == f"jetllm.yaml: expected 'name: value' lines, got a {kind}"


def test_error_in_yaml_says_where(load: Load) -> None:
    """The line and the column of a syntax error are named."""
    assert refusal(load, "port: 1\nhost: @me") == "jetllm.yaml, line 2, column 7: expected YAML in UTF-8"


@pytest.mark.parametrize("name", ["missing.yaml", "."])
def test_file_that_cannot_be_read_is_refused(load: Load, tmp_path: Path, name: str) -> None:
    """A file that was named must be there; only the one that was not named may be missing."""
    with pytest.raises(SettingsError, match=r"No such file|Is a directory") as caught:
        load_settings(config=tmp_path / name, environ={})
    assert "--config" in str(caught.value.hint)


@hypothesis_settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(yaml=st.text(alphabet=st.sampled_from("port:slots \n-[]{}'\"&*!|>%@`#,?0123456789.~"), max_size=60))
@example("port: &a\nslots: *a")
@example("<<: {port: 1}")
def test_any_text_is_read_or_refused(load: Load, yaml: str) -> None:
    """Whatever stands in the file, the answer is settings or a `SettingsError`, never a traceback."""
    try:
        load(yaml)
    except SettingsError as error:
        assert error.message.startswith("jetllm.yaml")


# Secrets


@pytest.mark.parametrize(
    "yaml",
    [
        f"api_key: [{SECRET}]",
        f"api_key: '{SECRET}",
        f"api_key: *{SECRET}",
        f"api_key: !{SECRET} x",
        f"api_key: @{SECRET}",
        f"api_key: {SECRET}: {SECRET}",
        f"api_kye: {SECRET}",
        f"api_key: {{a: {SECRET}}}",
        f"api_key: !!int {SECRET}",
        SECRET,
    ],
)
def test_error_never_shows_the_key(load: Load, yaml: str) -> None:
    """However wrongly a key is written, no error repeats it, not even as the line of a syntax error."""
    with pytest.raises(SettingsError) as caught:
        load(yaml)
    assert SECRET not in f"{caught.value}{caught.value.to_dict()}{caught.value.__cause__}"


def test_key_that_is_no_text_is_told_by_its_kind(load: Load) -> None:
    """A key of digits has to be quoted in YAML; the message says what was found without showing it."""
    assert refusal(load, "api_key: 271828") == "jetllm.yaml: api_key: expected text, got a secret int"


def test_settings_never_show_the_key(load: Load) -> None:
    """The key is in no printed form of the settings; who needs it has to ask for it."""
    found = load(None, {"JETLLM_API_KEY": SECRET})
    assert SECRET not in f"{found!r}{found}{found.model_dump()}{found.model_dump_json()}"
    assert found.api_key is not None
    assert found.api_key.get_secret_value() == SECRET
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"api_key": [SECRET]})
    assert SECRET not in str(caught.value)


# What a worker inherits


def test_worker_gets_what_is_on_the_list_and_nothing_else() -> None:
    """A worker inherits the machine's variables that engines need; keys and tokens are not among them."""
    needed = {
        "PATH": "/bin",
        "HOME": "/h",
        "LC_ALL": "C",
        "CUDA_VISIBLE_DEVICES": "0",
        "OMP_NUM_THREADS": "2",
        "MLC_LLM_HOME": "/m",
        "TVM_LIBRARY_PATH": "/t",
        "PYTHONPATH": "/p:/q",
    }
    kept_out = dict.fromkeys(
        ("JETLLM_API_KEY", "HF_TOKEN", "NVIDIA_API_KEY", "AWS_SECRET_ACCESS_KEY", "LD_PRELOAD",
         "MLC_HF_TOKEN", "PYTHONSTARTUP", "HTTPS_PROXY", "XPATH", "PATHS"), SECRET)  # fmt: skip
    found = worker_environment({**needed, **kept_out})
    assert found.items() >= needed.items()
    assert not found.keys() & kept_out.keys()
    assert SECRET not in found.values()


def test_worker_finds_the_daemons_own_packages_from_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Relative entries of PYTHONPATH are those of the daemon's directory; empty ones name none."""
    monkeypatch.chdir(tmp_path)
    found = worker_environment({"PYTHONPATH": "checkout/python::/p"})
    assert found["PYTHONPATH"] == f"{tmp_path}/checkout/python:/p"


def test_worker_environment_calms_openmp_and_keeps_engines_offline() -> None:
    """Engines neither spin nor look for the network; a machine may tune OpenMP for itself."""
    found = worker_environment({})
    assert (found["GOMP_SPINCOUNT"], found["HF_HUB_OFFLINE"]) == ("1000", "1")
    assert worker_environment({"GOMP_SPINCOUNT": "0"})["GOMP_SPINCOUNT"] == "0"


# The documentation


def test_documented_table_is_current() -> None:
    """docs/settings.md holds the table that the code writes."""
    text = PAGE.read_text(encoding="utf-8")
    assert with_current_table(text) == text, "write it anew: python -m tests.test_settings"


def test_table_has_a_row_for_every_setting() -> None:
    """Name, unit, default, range and meaning, in the order of the code."""
    rows = [row.split(" | ")[0].strip("| `") for row in settings_table().splitlines()[2:]]
    assert rows == list(Settings.model_fields)
    assert "| `keep_alive_s` | s | `300.0` | -1 to 31536000 |" in settings_table()
    assert "| `offline` |  | `false` | true, false |" in settings_table()


def with_current_table(text: str) -> str:
    """Return *text* with the table of now between its marks."""
    before, begin, rest = text.partition("<!-- table: begin -->\n")
    _, end, after = rest.partition("<!-- table: end -->")
    assert begin and end
    return f"{before}{begin}{settings_table()}{end}{after}"


if __name__ == "__main__":
    PAGE.write_text(with_current_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
