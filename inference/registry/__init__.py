"""models.json: what models there are and how each is run."""

from inference.registry.registry import Registry, load_registry, registry_schema
from inference.registry.spec import (
    FileSource,
    HubFile,
    HubSource,
    ModelSpec,
    PackagePart,
    PackageSource,
    Sampling,
    Source,
    Status,
    Variant,
)

__all__ = [
    "FileSource",
    "HubFile",
    "HubSource",
    "ModelSpec",
    "PackagePart",
    "PackageSource",
    "Registry",
    "Sampling",
    "Source",
    "Status",
    "Variant",
    "load_registry",
    "registry_schema",
]
