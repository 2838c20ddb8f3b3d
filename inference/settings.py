"""Settings: flag, JETLLM_* variable, jetllm.yaml, default, in that order; the only reader of os.environ."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError

from inference.errors import SettingsError

ENV_PREFIX = "JETLLM_"
CONFIG_FILE = "jetllm.yaml"
_PACKAGE_DIR = Path(__file__).resolve().parent
_INHERITED = re.compile(
    r"PATH|HOME|USER|LANG|LC_\w+|TZ|TMPDIR|LD_LIBRARY_PATH|CUDA_\w+|NVIDIA_\w+|OMP_\w+|GOMP_\w+|XDG_CACHE_HOME|HF_HOME"
)
# Spinning OpenMP threads beside a busy core: 0.6 to 20 tokens/s; with this, 31; idle, no difference.
_WORKER_ENVIRONMENT = {
    "GOMP_SPINCOUNT": "1000",
    "HF_HUB_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONUNBUFFERED": "1",
}


def _unit(text: str) -> dict[str, Any]:
    return {"unit": text}


class Settings(BaseModel):
    """Every setting of JetLLM, frozen; docs/settings.md is generated from this class."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    host: str = Field("127.0.0.1", description="address to listen on; beyond loopback only with api_key")
    port: int = Field(8080, ge=0, le=65535, description="TCP port; 0 takes any free one")
    allowed_hosts: tuple[str, ...] = Field((), description="further names that a Host header may carry")
    api_key: SecretStr | None = Field(None, description="key that every request must carry as a bearer token")
    registry: Path | None = Field(None, description="the models.json to use; the shipped one by default")
    cache_dir: Path = Field(Path("~/.cache/jetllm"), description="where weights are kept")
    state_dir: Path = Field(
        Path("~/.local/state/jetllm"), description="lock and state; one daemon per directory"
    )
    threads: int | None = Field(
        None,
        ge=1,
        le=256,
        json_schema_extra=_unit("threads"),
        description="CPU threads of an engine; by default all cores",
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
    prefill_batch_tokens: int = Field(
        128,
        ge=32,
        le=4096,
        json_schema_extra=_unit("tokens"),
        description="prompt tokens computed between two looks at cancellation",
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
    pin: tuple[str, ...] = Field((), description="models never unloaded by themselves")
    speed: Literal["fast", "balanced", "quality"] = Field(
        "balanced", description="speed priority of requests that name none"
    )
    offline: bool = Field(False, description="never fetch anything")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="least severe message that is logged"
    )

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
        flags: values given by the caller; ``None`` values count as not given.
        config: settings file; by default ``$JETLLM_CONFIG``, else ``jetllm.yaml`` in the working
            directory when there is one.
        environ: the environment to read instead of the process's own.

    Raises:
        SettingsError: unknown names and bad values, all of them at once.
    """
    env = os.environ if environ is None else environ
    path = config or (Path(env[ENV_PREFIX + "CONFIG"]) if env.get(ENV_PREFIX + "CONFIG") else None)
    merged: dict[str, tuple[str, Any]] = {}
    merged.update(_from_file(path))
    merged.update(_from_environ(env))
    merged.update(
        {k: (f"flag --{k.replace('_', '-')}", v) for k, v in (flags or {}).items() if v is not None}
    )
    unknown = [
        f"{origin}: unknown setting{_did_you_mean(name)}"
        for name, (origin, _) in merged.items()
        if name not in Settings.model_fields
    ]
    if unknown:
        raise SettingsError("\n".join(unknown), hint="the settings are listed in docs/settings.md")
    try:
        return Settings(**{name: value for name, (_, value) in merged.items()})
    except ValidationError as error:
        lines = [_line(merged, item) for item in error.errors()]
        raise SettingsError("\n".join(lines), hint="ranges are listed in docs/settings.md") from None


def _line(merged: Mapping[str, tuple[str, Any]], item: Any) -> str:
    name = str(item["loc"][0])
    origin = merged[name][0] if name in merged else name
    found = "a secret" if name == "api_key" else repr(item["input"])
    return f"{origin}: {item['msg'][0].lower()}{item['msg'][1:]}, found {found}"


def _did_you_mean(name: str) -> str:
    close = difflib.get_close_matches(name, list(Settings.model_fields), n=1)
    return f"; did you mean '{close[0]}'?" if close else ""


def _from_file(path: Path | None) -> dict[str, tuple[str, Any]]:
    if path is None:
        path = Path(CONFIG_FILE)
        if not path.is_file():
            return {}
    try:
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{path}: {error.strerror}", hint="name a readable file with --config") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise SettingsError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
    if data is None:
        return {}
    if not isinstance(data, dict):
        raise SettingsError(f"{path}: expected 'name: value' lines, found a {type(data).__name__}")
    return {str(name): (f"{path}: {name}", value) for name, value in data.items()}


def _from_environ(env: Mapping[str, str]) -> dict[str, tuple[str, Any]]:
    found: dict[str, tuple[str, Any]] = {}
    for variable, text in env.items():
        name = variable[len(ENV_PREFIX) :].lower()
        if not variable.startswith(ENV_PREFIX) or name == "config":
            continue
        is_list = name in Settings.model_fields and "tuple" in str(Settings.model_fields[name].annotation)
        found[name] = (
            variable,
            [part.strip() for part in text.split(",") if part.strip()] if is_list else text,
        )
    return found


def worker_environment(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the environment of a worker: an allow-list, so that no key or token of ours gets in."""
    env = os.environ if environ is None else environ
    return _WORKER_ENVIRONMENT | {name: text for name, text in env.items() if _INHERITED.fullmatch(name)}


def settings_table() -> str:
    """Return docs/settings.md's table: name, unit, default, range, meaning."""
    rows = ["| setting | unit | default | range | meaning |", "| --- | --- | --- | --- | --- |"]
    for name, info in Settings.model_fields.items():
        extra = info.json_schema_extra if isinstance(info.json_schema_extra, dict) else {}
        cells = (f"`{name}`", extra.get("unit", ""), _shown(info.default), _range(name), info.description)
        rows.append(f"| {' | '.join(str(cell) for cell in cells)} |")
    return "\n".join(rows) + "\n"


def _shown(value: Any) -> str:
    if value is None or value == ():
        return "none"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


def _range(name: str) -> str:
    schema = Settings.model_json_schema()["properties"][name]
    options = [schema, *schema.get("anyOf", [])]
    for option in options:
        if "enum" in option:
            return ", ".join(option["enum"])
        low = option.get("minimum", option.get("exclusiveMinimum"))
        if low is not None:
            return f"{'> ' if 'exclusiveMinimum' in option else ''}{low} to {option.get('maximum')}"
    return {"boolean": "true, false", "array": "list"}.get(schema.get("type", ""), "text")
