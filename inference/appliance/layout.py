"""The layout: where the appliance keeps what, below one root."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Layout:
    """Paths of an appliance whose file system is at *root*."""

    root: Path = Path("/")

    @property
    def config(self) -> Path:
        """The appliance's own settings (`config.Config`)."""
        return self.root / "etc/jetllm/appliance.conf"

    @property
    def settings(self) -> Path:
        """The daemon's settings, mounted into the container."""
        return self.root / "etc/jetllm/jetllm.yaml"

    @property
    def trusted(self) -> Path:
        """The public keys (``*.pub``, PEM) whose bundles are taken."""
        return self.root / "etc/jetllm/trusted.d"

    @property
    def data(self) -> Path:
        """Everything that grows; may be a partition of its own."""
        return self.root / "var/lib/jetllm"

    @property
    def releases(self) -> Path:
        """Which image is current, which was before, which is tried, which are bad."""
        return self.data / "appliance/releases.json"

    @property
    def stamps(self) -> Path:
        """One file per step of the first boot that is done."""
        return self.data / "appliance/firstboot"

    @property
    def store(self) -> Path:
        """The daemon's `cache_dir`: weights and builds."""
        return self.data / "cache"

    @property
    def state(self) -> Path:
        """The daemon's `state_dir`: keys, evidence, logs."""
        return self.data / "state"

    @property
    def bundles(self) -> Path:
        """Where a flashed device finds its first bundle (``factory``)."""
        return self.data / "bundles"

    @property
    def run(self) -> Path:
        """What does not outlive a boot; mounted read-only into the container."""
        return self.root / "run/jetllm"

    @property
    def device_file(self) -> Path:
        """What the host says of the board (`device.detect.DEVICE_FILE`)."""
        return self.run / "device.json"
