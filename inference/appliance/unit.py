"""The unit: the appliance's service, started, stopped and looked at through systemctl."""

from __future__ import annotations

from dataclasses import dataclass

from inference.appliance.command import demand, run

SERVICE = "jetllm.service"
_ASK_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 300.0  # the unit's own limit comes first


@dataclass(frozen=True)
class Unit:
    """One systemd unit by its name.

    What changes it raises a `CommandError` where systemd does not do it.
    """

    name: str = SERVICE

    def start(self) -> None:
        """Start it anew, also after a crash loop, without waiting until it is ready."""
        run("systemctl", "reset-failed", self.name, timeout_s=_ASK_TIMEOUT_S)  # fails with nothing to reset
        self._do("start", "--no-block", self.name, timeout_s=_ASK_TIMEOUT_S)

    def stop(self) -> None:
        """Stop it, and wait until all that it ran has ended."""
        self._do("stop", self.name, timeout_s=_STOP_TIMEOUT_S)

    def state(self) -> str:
        """Return what systemd says: "active", "activating", "failed", "inactive", ..."""
        done = run("systemctl", "is-active", self.name, timeout_s=_ASK_TIMEOUT_S)
        return done.output.strip() or "unknown"

    def _do(self, *words: str, timeout_s: float) -> None:
        hint = f"systemctl status {self.name}; it needs root: sudo jetllm ..."
        demand("systemctl", *words, timeout_s=timeout_s, hint=hint)
