"""The checks: every question the doctor asks, in the order in which the answers are read."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from inference.doctor import directories, engines, gpu, machine, models, running
from inference.doctor.finding import Check, Finding, Scene, unknown


class Entry(NamedTuple):
    """A question.

    Args:
        elsewhere: whether it can be answered for a machine whose file system alone is here.
    """

    name: str
    look: Check
    elsewhere: bool = False


CHECKS: tuple[Entry, ...] = (
    Entry("settings", directories.settings),
    Entry("python", engines.python),
    Entry("packages", engines.packages),
    Entry("engines", engines.engines),
    Entry("libgomp", engines.libgomp),
    Entry("gpu", gpu.gpu, True),
    Entry("l4t", gpu.l4t, True),
    Entry("memory", machine.memory, True),
    Entry("swap", machine.swap, True),
    Entry("power", machine.power, True),
    Entry("heat", machine.heat, True),
    Entry("clock", machine.clock),
    Entry("container", machine.container, True),
    Entry("limits", machine.limits),
    Entry("directories", directories.directories),
    Entry("secrets", directories.secrets),
    Entry("disk", directories.disk),
    Entry("registry", models.registry),
    Entry("evidence", models.evidence),
    Entry("weights", models.weights),
    Entry("port", running.port),
    Entry("daemon", running.daemon),
    Entry("systemd", running.systemd, True),
    Entry("network", running.network),
)


def examine(scene: Scene) -> Iterator[tuple[str, Finding]]:
    """Ask every question that *scene* can answer; yield its name with each answer."""
    for entry in CHECKS:
        if not scene.here and not entry.elsewhere:
            continue
        try:
            for finding in entry.look(scene):
                yield entry.name, finding
        except Exception as error:  # one question that cannot be answered is no reason to ask no other
            yield entry.name, unknown(f"it could not be looked at: {type(error).__name__}: {error}")
