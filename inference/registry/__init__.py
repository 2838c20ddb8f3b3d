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
from inference.registry.sources import (
    FileSource,
    HubSource,
    PackageDirectory,
    PackageFile,
    PackagePart,
    PackageSource,
    Source,
    UrlSource,
    WeightsFile,
)
from inference.registry.spec import Adapter, ModelSpec, Sampling, Status, Variant

__all__ = [
    "Adapter",
    "Conditions",
    "Evidence",
    "EvidenceFile",
    "EvidenceRecord",
    "FileSource",
    "HubSource",
    "ModelSpec",
    "PackageDirectory",
    "PackageFile",
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
