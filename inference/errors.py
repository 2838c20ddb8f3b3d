"""What can go wrong, in words that end in the next step; knows nothing of HTTP.

Every error carries a stable ``code``: the API maps codes to statuses, the command line to exit
codes, and the wire carries them from a worker to the daemon.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar


class JetLLMError(Exception):
    """An error that a user can answer.

    Args:
        message: the subject, what is wrong with it, the value found and the value wanted.
        hint: the next thing to do, ideally a command; ``None`` when there is nothing to do.
        code: a stable identifier; the class's own by default.
        retryable: whether the same request may succeed later without a change.
        param: the request field or settings key at fault.
        retry_after_s: seconds after which a retry makes sense.
        details: numbers and names for machines (JSON values only).
    """

    code: ClassVar[str] = "internal_error"
    retryable: ClassVar[bool] = False

    def __init__(
        self,
        message: str,
        *,
        hint: str | None = None,
        param: str | None = None,
        retry_after_s: float | None = None,
        details: Mapping[str, Any] | None = None,
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.param = param
        self.retry_after_s = retry_after_s
        self.details: dict[str, Any] = dict(details or {})

    def __str__(self) -> str:
        return f"{self.message}\n    hint: {self.hint}" if self.hint else self.message

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON form that `from_dict` reads back."""
        return {
            "code": self.code,
            "message": self.message,
            "hint": self.hint,
            "param": self.param,
            "retry_after_s": self.retry_after_s,
            "details": self.details,
        }


class InternalError(JetLLMError):
    """A defect of ours: the caller did nothing wrong and can do nothing about it."""


class InvalidRequestError(JetLLMError):
    """A request value is of the wrong type, out of range or contradictory."""

    code = "invalid_value"


class InvalidSchemaError(InvalidRequestError):
    """A JSON schema or a grammar that the engine cannot compile."""

    code = "invalid_schema"


class UnsupportedParameterError(InvalidRequestError):
    """The backend of the chosen variant cannot do what *param* asks for."""

    code = "unsupported_parameter"


class ContextLengthExceededError(InvalidRequestError):
    """The prompt has more tokens than the context; ``details`` has both counts."""

    code = "context_length_exceeded"


class ModelNotFoundError(JetLLMError):
    """No model of that name, or no variant of it, is registered."""

    code = "model_not_found"


class ModelNotPulledError(JetLLMError):
    """The model is registered but its weights are not on this machine."""

    code = "model_not_pulled"


class ModelInUseError(JetLLMError):
    """What would be deleted is loaded, fetched or built, or the settings keep it."""

    code = "model_in_use"


class JobNotFoundError(JetLLMError):
    """No job of that id runs, and none ended not long ago."""

    code = "job_not_found"


class DoesNotFitError(JetLLMError):
    """Nothing that was asked for can ever fit this machine's memory."""

    code = "does_not_fit"


class NoUsableBackendError(JetLLMError):
    """The variant's engine is not installed here."""

    code = "backend_not_available"


class UnsafeArtifactError(JetLLMError):
    """A file is malformed, of a refused kind, or not the file it should be."""

    code = "unsafe_artifact"


class SettingsError(JetLLMError):
    """A setting is unknown or out of range."""

    code = "invalid_settings"


class RegistryError(JetLLMError):
    """models.json does not say what it should; the message has one line per error."""

    code = "invalid_registry"


class DownloadError(JetLLMError):
    """Weights could not be fetched."""

    code = "download_failed"
    retryable = True


class OfflineError(DownloadError):
    """The settings forbid the download: it fails however often it is tried."""

    code = "offline"
    retryable = False


class InsufficientStorageError(JetLLMError):
    """The disk has no room for what would be written."""

    code = "insufficient_storage"


class LoadFailedError(JetLLMError):
    """The engine refused the weights; the message names its reason."""

    code = "load_failed"


class ModelNotBuiltError(ModelNotPulledError):
    """The model's checkpoint is here, but nothing was made of it for this machine's engine."""

    code = "model_not_built"


class BuildFailedError(JetLLMError):
    """A model could not be made of its checkpoint.

    Args:
        cached: whether the same inputs would fail again, so that nobody need try.
    """

    code = "build_failed"
    cached: ClassVar[bool] = False


class WorkerCrashedError(JetLLMError):
    """The engine's process ended while it had work."""

    code = "backend_crashed"
    retryable = True


class BackendTimeoutError(JetLLMError):
    """The engine made no progress within its time limit."""

    code = "backend_timeout"
    retryable = True


class QueueFullError(JetLLMError):
    """More requests wait than the queue may hold."""

    code = "queue_full"
    retryable = True


class LoadingError(JetLLMError):
    """The model is still loading."""

    code = "loading"
    retryable = True


class MemoryPressureError(JetLLMError):
    """It would fit, but not beside what must stay loaded now."""

    code = "memory_pressure"
    retryable = True


class DrainingError(JetLLMError):
    """The daemon is stopping and takes no new work."""

    code = "draining"
    retryable = True


class CancelledError(JetLLMError):
    """The caller left or asked to stop."""

    code = "cancelled"


class AlreadyRunningError(JetLLMError):
    """Another daemon holds this state directory."""

    code = "already_running"


class AddressInUseError(JetLLMError):
    """Another program listens on the address."""

    code = "address_in_use"


class UnsafeBindError(JetLLMError):
    """Listening beyond loopback without an API key."""

    code = "unsafe_bind"


class MissingDependencyError(JetLLMError):
    """A system library or an optional package is not installed."""

    code = "missing_dependency"


def _tree(cls: type[JetLLMError]) -> list[type[JetLLMError]]:
    return [cls, *(leaf for child in cls.__subclasses__() for leaf in _tree(child))]


def from_dict(data: Mapping[str, Any]) -> JetLLMError:
    """Rebuild an error that crossed a process boundary; an unknown code is an `InternalError`."""
    classes = {cls.code: cls for cls in _tree(JetLLMError)}
    cls = classes.get(str(data.get("code")), InternalError)
    return cls(
        str(data.get("message", "unknown error")),
        hint=data.get("hint"),
        param=data.get("param"),
        retry_after_s=data.get("retry_after_s"),
        details=data.get("details"),
    )
