"""Provision: whatever a named model still lacks on this machine is brought before it is asked for again."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import TypeVar

from inference.artifacts.build import BuildProgress
from inference.artifacts.sources import Progress
from inference.errors import ModelNotBuiltError, ModelNotPulledError
from inference.service import Service

T = TypeVar("T")
_MOST_STEPS = 4  # pull, build; where that holds nothing, pull another variant, build it

PullBar = Callable[[], AbstractContextManager[Callable[[Progress], None]]]
BuildBar = Callable[[], AbstractContextManager[Callable[[BuildProgress], None]]]


def provided(
    work: Callable[[], T],
    service: Service,
    model: str,
    variant: str | None,
    *,
    pulling: PullBar,
    building: BuildBar,
) -> T:
    """Return what *work* returns, with what it lacks of *model* pulled and built first.

    Where nothing can be built and no variant is named, the next backend's is taken.

    Raises:
        JetLLMError: of *work*, of the pull, of the build.
    """
    for _ in range(_MOST_STEPS):
        try:
            return work()
        except ModelNotBuiltError as error:
            with building() as tell_build:
                service.build_or_pass(model, variant, error.details["variant"], progress=tell_build)
        except ModelNotPulledError as error:
            with pulling() as tell_pull:
                service.pull(model, variant=variant or error.details.get("variant"), progress=tell_pull)
    return work()
