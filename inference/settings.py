"""Settings: flag, JETLLM_* variable, jetllm.yaml, default, in that order; the only reader of os.environ."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, ValidationInfo, field_validator

from inference.errors import SettingsError

ENV_PREFIX = "JETLLM_"
CONFIG_FILE = "jetllm.yaml"
_PACKAGE_DIR = Path(__file__).resolve().parent
_INHERITED = re.compile(
    r"(?!\w*(?:KEY|TOKEN|SECRET|PASSWORD|CREDENTIAL))"  # NVIDIA_API_KEY is one
    r"(?:PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|OMP_\w+|GOMP_\w+"
    r"|XDG_CACHE_HOME|HF_HOME"
    # Where mlc_llm and TVM look for themselves, their libraries and their caches.
    r"|PYTHONPATH|CONDA_PREFIX|MLC_\w+|TVM_\w+)"
)
_KINDS = {
    "integer": "a whole number",
    "number": "a number",
    "boolean": "true or false",
    "array": "a list of names",
    "string": "text",
}
_SHOWN_CHARACTERS = 100
# Spinning OpenMP threads beside a busy core: 0.6 to 20 tokens/s; with this, 31; idle, no difference.
_WORKER_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}
_Given = list[tuple[str, str, Any]]  # name, where it was written, value


def _unit(text: str) -> dict[str, Any]:
    return {"unit": text}


class Settings(BaseModel):
    """Every setting of JetLLM, frozen; docs/settings.md is generated from this class."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback only with a key")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 takes any free one")
    allowed_hosts: tuple[str, ...] = Field((), description="further names that a Host header may carry")
    api_key: SecretStr | None = Field(
        None, description="a key for requests to carry as a bearer token, beside those of jetllm keys"
    )
    registry: Path | None = Field(None, description="the models.json to use; the shipped one by default")
    cache_dir: Path = Field(Path("~/.cache/jetllm"), description="where weights are kept")
    mlc_device: Literal["cuda", "cpu"] | None = Field(
        None, description="where MLC computes; by default the GPU, if there is one"
    )
    store_quota_bytes: int | None = Field(
        None,
        ge=0,
        le=2**50,
        json_schema_extra=_unit("bytes"),
        description="disk that weights may take, for which unused ones are removed; by default nothing is",
    )
    state_dir: Path = Field(
        Path("~/.local/state/jetllm"), description="lock and state; one daemon per directory"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        json_schema_extra=_unit("threads"),
        description="CPU threads of an engine; by default all cores, and one less to decode on few",
    )
    slots: int = Field(
        4,
        ge=1,
        le=32,
        json_schema_extra=_unit("sequences"),
        description="requests that one worker computes at once",
    )
    context_tokens: int = Field(
        4096,
        ge=64,
        le=1_048_576,
        json_schema_extra=_unit("tokens"),
        description="context window of each sequence, at most the model's own",
    )
    prefill_batch_tokens: int | None = Field(
        None,
        ge=32,
        le=4096,
        json_schema_extra=_unit("tokens"),
        description="prompt tokens computed at once, between two looks at cancellation; 64, with MLC 512",
    )
    prompt_cache_bytes: int = Field(
        256 * 2**20,
        ge=0,
        le=2**40,
        json_schema_extra=_unit("bytes"),
        description="memory for the KV caches of earlier prompts",
    )
    memory_reserve_bytes: int | None = Field(
        None,
        ge=0,
        le=2**44,
        json_schema_extra=_unit("bytes"),
        description="memory never given to models; by default max(512 MiB, 6 %)",
    )
    max_loaded_models: int = Field(
        2, ge=1, le=64, json_schema_extra=_unit("models"), description="workers alive at once"
    )
    keep_alive_s: float = Field(
        300.0,
        ge=-1,
        le=31_536_000,
        json_schema_extra=_unit("s"),
        description="idle time after which a model is unloaded; -1 is never",
    )
    min_residency_s: float = Field(
        5.0,
        ge=0,
        le=3600,
        json_schema_extra=_unit("s"),
        description="time a loaded model is kept before another may take its place",
    )
    max_queue: int = Field(
        32,
        ge=0,
        le=10_000,
        json_schema_extra=_unit("requests"),
        description="requests that may wait for a slot",
    )
    stall_timeout_s: float = Field(
        30.0,
        gt=0,
        le=3600,
        json_schema_extra=_unit("s"),
        description="silence of a computing worker after which it is killed",
    )
    canary_interval_s: float = Field(
        60.0, ge=0, le=86_400, json_schema_extra=_unit("s"), description="pause between canaries; 0: none"
    )
    load_timeout_s: float = Field(
        120.0,
        gt=0,
        le=86_400,
        json_schema_extra=_unit("s"),
        description="silence of a loading worker after which it is killed",
    )
    stop_timeout_s: float = Field(
        10.0,
        gt=0,
        le=600,
        json_schema_extra=_unit("s"),
        description="time from asking a worker to stop to SIGKILL",
    )
    drain_timeout_s: float = Field(
        30.0,
        ge=0,
        le=3600,
        json_schema_extra=_unit("s"),
        description="time that accepted work gets after SIGTERM",
    )
    request_timeout_s: float = Field(
        600.0, gt=0, le=86_400, json_schema_extra=_unit("s"), description="longest life of a request"
    )
    preload: tuple[str, ...] = Field((), description="models loaded at start")
    pin: tuple[str, ...] = Field(
        (), description="models never unloaded by themselves, nor removed for the quota"
    )
    speed: Literal["fast", "balanced", "quality"] = Field(
        "balanced", description="speed priority of requests that name none"
    )
    jtop: bool = Field(False, description="read jetson-stats too, on the host and with the extra `jetson`")
    decision_log: Path | None = Field(
        None, description="file to which every choice is appended with all that led to it"
    )
    offline: bool = Field(False, description="never fetch anything")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe message that is logged"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _as_written(cls, value: Any, info: ValidationInfo) -> Any:
        """Part a list at its commas; refuse a boolean as a number, which Python would take."""
        name = info.field_name or ""
        if isinstance(value, bool) and cls.model_fields[name].annotation is not bool:
            raise ValueError("a boolean is not a number")
        return _parted(value) if _is_list(name) else value

    @property
    def registry_path(self) -> Path:
        """The models.json in force: the setting, a checkout's, or the installed package's."""
        if self.registry is not None:
            return self.registry.expanduser()
        checkout = _PACKAGE_DIR.parent / "models.json"
        return checkout if checkout.is_file() else _PACKAGE_DIR / "models.json"

    @property
    def cache_path(self) -> Path:
        """*cache_dir* with ``~`` expanded."""
        return self.cache_dir.expanduser()

    @property
    def state_path(self) -> Path:
        """*state_dir* with ``~`` expanded."""
        return self.state_dir.expanduser()


def load_settings(
    flags: Mapping[str, Any] | None = None,
    *,
    config: Path | None = None,
    environ: Mapping[str, str] | None = None,
) -> Settings:
    """Merge flags over environment over file over defaults.

    Args:
        flags: values given by the caller.
        config: settings file; by default ``$JETLLM_CONFIG``, else ``jetllm.yaml`` in the working
            directory when there is one.
        environ: the environment to read instead of the process's own.

    Raises:
        SettingsError: unknown names and bad values, all of them at once.
    """
    env = os.environ if environ is None else environ
    given = [*_from_file(config or _named_file(env)), *_from_environ(env), *_from_flags(flags or {})]
    # Nothing and the empty text are no values: a variable that a script left empty changes nothing.
    merged = {name: (origin, value) for name, origin, value in given if value not in (None, "")}
    known = {name: value for name, (_, value) in merged.items() if name in Settings.model_fields}
    problems = [_unknown(name, origin) for name, origin, _ in given if name not in Settings.model_fields]
    try:
        settings = Settings(**known)
    except ValidationError as error:
        problems += dict.fromkeys(_bad_value(merged, item) for item in error.errors())
    else:
        if not problems:
            return settings
    raise SettingsError("\n".join(problems), hint="docs/settings.md lists every setting with its range")


def _unknown(name: str, origin: str) -> str:
    close = difflib.get_close_matches(name.removeprefix(ENV_PREFIX).lower(), list(Settings.model_fields), n=1)
    return f"{origin}: unknown setting{f'; did you mean {close[0]!r}?' if close else ''}"


def _bad_value(merged: Mapping[str, tuple[str, Any]], item: Any) -> str:
    name = str(item["loc"][0])
    origin, value = merged[name]
    shown = f"a secret {type(value).__name__}" if name == "api_key" else repr(value)
    return f"{origin}: expected {_wanted(name)}, got {shown[:_SHOWN_CHARACTERS]}"


def _from_flags(flags: Mapping[str, Any]) -> _Given:
    return [(name, f"flag --{name.replace('_', '-')}", value) for name, value in flags.items()]


def _from_environ(env: Mapping[str, str]) -> _Given:
    ours = {ENV_PREFIX + name.upper(): name for name in Settings.model_fields}
    given = [name for name in env if name.startswith(ENV_PREFIX) and name != ENV_PREFIX + "CONFIG"]
    return [(ours.get(variable, variable), variable, env[variable]) for variable in given]


def settings_file(config: Path | None = None) -> Path | None:
    """Return the file that `load_settings` reads; ``None`` where there is none."""
    named = config or _named_file(os.environ)
    if named is not None:
        return named.expanduser()
    return Path(CONFIG_FILE) if Path(CONFIG_FILE).is_file() else None


def _named_file(env: Mapping[str, str]) -> Path | None:
    named = env.get(ENV_PREFIX + "CONFIG")
    return Path(named) if named else None


def _from_file(path: Path | None) -> _Given:
    if path is None:
        path = Path(CONFIG_FILE)
        if not path.is_file():
            return []
    data = _parsed(path.expanduser())
    if data is None:
        return []
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected 'name: value' lines, got a {type(data).__name__}")
    return [(str(name), f"{path}: {name}", value) for name, value in data.items()]


def _parsed(path: Path) -> Any:
    """Read YAML; an error says where, but quotes nothing: the line may hold the key."""
    try:
        text = path.read_text(encoding="utf-8")
        _refuse_repeated(path, yaml.compose(text, Loader=yaml.SafeLoader))
        return yaml.safe_load(text)
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", hint="name a readable file with --config") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f", line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    raise SettingsError(f"{path}{where}: expected YAML in UTF-8", hint="quote values with special characters")


def _refuse_repeated(path: Path, node: Any) -> None:
    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    names = [str(key.value) for key, _ in pairs]
    repeated = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if repeated:
        problems = [f"{path}: {name}: expected once, got {names.count(name)} times" for name in repeated]
        raise SettingsError("\n".join(problems))


def _is_list(name: str) -> bool:
    return "tuple" in str(Settings.model_fields[name].annotation)


def _parted(value: Any) -> Any:
    """Part texts at their commas; leave what is no text for the validation to refuse."""
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, (list, tuple)) or not all(isinstance(item, str) for item in items):
        return value
    return tuple(part.strip() for item in items for part in item.split(",") if part.strip())


def worker_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a worker: an allow-list, so that no key or token of ours gets in."""
    env = os.environ if environ is None else environ
    inherited = {name: text for name, text in env.items() if _INHERITED.fullmatch(name)}
    if paths := inherited.pop("PYTHONPATH", ""):
        # A worker has another working directory.
        kept = [str(Path(path).absolute()) for path in paths.split(os.pathsep) if path]
        inherited["PYTHONPATH"] = os.pathsep.join(kept)
    return _WORKER_ENVIRONMENT | inherited


def settings_table() -> str:
    """Return docs/settings.md's table: name, unit, default, range, meaning."""
    rows = ["| setting | unit | default | range | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, info in Settings.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        cells = (f"`{name}`", extra.get("unit", ""), _shown(info.default), _range(name), info.description)
        rows.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(rows) + "\n"


def setting_help(name: str) -> str:
    """Return one setting's meaning with its unit and range, for a command's help."""
    info = Settings.model_fields[name]
    extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
    notes = ", ".join(part for part in (str(extra.get("unit", "")), _range(name)) if part)
    return f"{info.description} [{notes}]"


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _range(name: str) -> str:
    schema = _schema(name)
    if "enum" in schema:
        return ", ".join(schema["enum"])
    kind = "path" if schema.get("format") == "path" else schema["type"]
    return _limits(schema) or {"boolean": "true, false", "array": "list", "path": "path"}.get(kind, "text")


def _wanted(name: str) -> str:
    schema = _schema(name)
    if "enum" in schema:
        return f"one of {', '.join(schema['enum'])}"
    return ", ".join(part for part in (_KINDS[schema["type"]], _limits(schema)) if part)


def _limits(schema: Mapping[str, Any]) -> str:
    if "maximum" not in schema:
        return ""
    least = f"above {schema['exclusiveMinimum']}," if "exclusiveMinimum" in schema else schema["minimum"]
    return f"{least} to {schema['maximum']}"


def _schema(name: str) -> Mapping[str, Any]:
    """Return the JSON schema of one setting, without the choice of none."""
    schema = Settings.model_json_schema()["properties"][name]
    options: list[Mapping[str, Any]] = schema.get("anyOf", [schema])
    return next(option for option in options if option["type"] != "null")
