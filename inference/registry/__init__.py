"""models.json: what models there are and how each is run."""

from inference.registry.evidence import (
    Conditions,
    Evidence,
    EvidenceFile,
    EvidenceRecord,
    content_sha256,
)
from inference.registry.evidence_file import append_evidence, load_evidence
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
    "Conditions",
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
    "append_evidence",
    "content_sha256",
    "load_evidence",
    "load_registry",
    "registry_schema",
]
