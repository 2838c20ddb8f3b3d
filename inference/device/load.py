"""The load of this machine, as far as it is no matter of Jetsons: from psutil."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Load:
    """Runnable tasks on average (1, 5 and 15 minutes), and processes there are."""

    average_1m: float | None
    average_5m: float | None
    average_15m: float | None
    processes: int | None


def read_load(root: Path | str = "/") -> Load:
    """Ask psutil, which knows this machine only: of any other *root* nothing is known."""
    root = Path(root)
    if root != Path("/"):
        return Load(None, None, None, None)
    import psutil  # the appliance's host has none, and asks what the board is, not how busy it is

    try:
        return Load(*psutil.getloadavg(), processes=len(psutil.pids()))
    except (OSError, ValueError, psutil.Error):
        return Load(None, None, None, None)
