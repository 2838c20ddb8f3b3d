"""The long work on models as jobs: pull, build, load and bench."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from inference.api.context import Context
from inference.api.feed import begin
from inference.api.native_schema import BenchBody
from inference.api.schema import BuildBody, LoadBody, PullBody
from inference.bench import measure
from inference.jobs import Cancelled, Job, Tell

_BUILD_FIELDS = ("model", "variant", "key", "recipe", "steps", "failures", "text", "parameters_bytes")


@dataclass(frozen=True)
class LoadProgress:
    """How far a load is; *fraction* is 0 to 1, ``None`` while nothing is known."""

    phase: str
    fraction: float | None


def pull_job(context: Context, name: str, body: PullBody) -> tuple[Job, bool]:
    """Begin to bring a model's weights here, or join who does; see `begin`."""

    def work(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        pulled = context.service.pull(name, variant=body.variant, progress=tell, cancelled=cancelled)
        return {key: pulled[key] for key in ("model", "variant")}

    return begin(context, "pull", name, body.variant, work)


def build_job(context: Context, name: str, body: BuildBody) -> tuple[Job, bool]:
    """Begin to build a model, or join who does; see `begin`."""

    def work(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        built = context.service.build(
            name, variant=body.variant, force=bool(body.force), progress=tell, cancelled=cancelled
        )
        return {key: built[key] for key in _BUILD_FIELDS}

    return begin(context, "build", name, body.variant, work, wish=bool(body.force))


def load_job(context: Context, body: LoadBody) -> tuple[Job, bool]:
    """Begin to load a model, or join who does; see `begin`."""

    def work(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        return context.service.load(
            body.model,
            variant=body.variant,
            pin=body.pin,
            keep_alive_s=body.keep_alive,
            building=tell,
            cancelled=_telling(context, body.model, tell, cancelled),
        )

    return begin(context, "load", body.model, body.variant, work, wish=(body.pin, body.keep_alive))


def bench_job(context: Context, body: BenchBody) -> tuple[Job, bool]:
    """Begin to measure a model, or join who does the very same; see `begin`.

    Raises:
        InvalidRequestError: more requests at once than a worker computes.
    """
    course = body.to_course(context.settings.slots)

    def work(tell: Tell, cancelled: Cancelled) -> dict[str, Any]:
        return measure(context.service.generate, course, progress=tell, cancelled=cancelled)

    return begin(context, "bench", body.model, body.variant, work, wish=course)


def _telling(context: Context, name: str, tell: Tell, cancelled: Cancelled) -> Callable[[], bool]:
    """Return *cancelled*, which whoever waits for a worker asks often, with a look at how far that is."""
    model = context.service.model(name)["id"]
    told: list[LoadProgress] = []

    def asked() -> bool:
        workers = context.service.status()["workers"]
        row = next((row for row in workers if row["model"] == model and row["state"] == "starting"), None)
        progress = None if row is None else LoadProgress("load", row["progress"])
        if progress is not None and told[-1:] != [progress]:
            told.append(progress)
            tell(progress)
        return cancelled()

    return asked
