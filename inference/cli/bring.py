"""Bringing: weights pulled and builds made, by the daemon when one runs, else here; watched either way."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from inference.client import Client, path_of
from inference.console import build_bar, download_bar, print_note

Bar = Callable[[str], AbstractContextManager[Callable[[Any], None]]]


def pulled(client: Client | None, service: Any, model: str, variant: str | None) -> dict[str, Any]:
    """Bring the weights of *model* here and return what was pulled.

    Raises:
        KeyboardInterrupt: by the user; what that ends is said on the screen.
    """
    from inference.artifacts.sources import Progress

    if client is not None:
        return _watched(client, "pull", model, {"variant": variant}, download_bar, Progress)
    with download_bar(model) as progress:
        try:
            row: dict[str, Any] = service.pull(model, variant=variant, progress=progress)
        except KeyboardInterrupt:
            print_note(f"{model}: stopped; jetllm pull {model} goes on from what is here")
            raise
    return row


def built(
    client: Client | None,
    service: Any,
    model: str,
    variant: str | None,
    *,
    force: bool = False,
    board: str | None = None,
) -> dict[str, Any]:
    """Build *model* for MLC and return the record of its build; raises as `pulled` does."""
    from inference.artifacts.build import BuildProgress

    if client is not None:
        body = {"variant": variant, "force": force or None}
        return _watched(client, "build", model, body, build_bar, BuildProgress)
    with build_bar(model) as progress:
        try:
            row: dict[str, Any] = service.build(
                model, variant=variant, force=force, board=board, progress=progress
            )
        except KeyboardInterrupt:
            print_note(f"{model}: stopped; nothing was built")
            raise
    return row


def _watched(
    client: Client, work: str, model: str, body: Mapping[str, Any], bar: Bar, kind: Callable[..., Any]
) -> dict[str, Any]:
    """Have the daemon do *work*, show how far it is, and return what came of it."""
    given = {name: value for name, value in body.items() if value is not None}
    result: dict[str, Any] = {}
    job = None
    try:
        with bar(model) as show:
            for event, value in client.feed(path_of(model, work), given):
                if event == "job":
                    job = value["id"]
                elif event == "progress":
                    show(kind(**value))
                elif event == "done":
                    result = value
    except KeyboardInterrupt:
        print_note(f"{model}: no longer watched; the daemon goes on with it")
        print_note(f"    watch again: jetllm {work} {model}")
        print_note(f"    stop it: curl -X DELETE {client.url}/jetllm/v1/jobs/{job}")
        raise
    return result
