"""models.json: what models there are and how each is run."""

from inference.registry.evidence import Evidence, EvidenceFile, EvidenceRecord, load_evidence
from inference.registry.registry import Registry, load_registry, registry_schema
from inference.registry.spec import (
    Adapter,
    FileSource,
    HubSource,
    ModelSpec,
    PackagePart,
    PackageSource,
    Sampling,
    Source,
    Status,
    UrlSource,
    Variant,
    WeightsFile,
)

__all__ = [
    "Adapter",
    "Evidence",
    "EvidenceFile",
    "EvidenceRecord",
    "FileSource",
    "HubSource",
    "ModelSpec",
    "PackagePart",
    "PackageSource",
    "Registry",
    "Sampling",
    "Source",
    "Status",
    "UrlSource",
    "Variant",
    "WeightsFile",
    "load_evidence",
    "load_registry",
    "registry_schema",
]
