"""What can go wrong with an appliance."""

from __future__ import annotations

from inference.errors import JetLLMError


class BundleError(JetLLMError):
    """A bundle is not what its manifest says, is not signed by who is trusted, or is for another board."""

    code = "bundle_refused"


class ImageError(JetLLMError):
    """The container engine did not do what it was asked; its own words are in the message."""

    code = "container_engine"


class NotReadyError(JetLLMError):
    """A release did not give its tokens in time, or gave others than its bundle promises."""

    code = "not_ready"


class NoReleaseError(JetLLMError):
    """There is no image to run, or none to go back to."""

    code = "no_release"
