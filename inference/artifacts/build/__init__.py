"""The builder: MLC's weights and library, made of a checkpoint once, and kept by what they were made of."""

from inference.artifacts.build.builder import Builder
from inference.artifacts.build.bundle import ForeignLibraryError, export_bundle, import_bundle
from inference.artifacts.build.identity import Engine, find_engine
from inference.artifacts.build.order import Order, order_for
from inference.artifacts.build.progress import STEPS, BuildProgress
from inference.artifacts.build.recipe import Recipe, Target, target_of
from inference.artifacts.build.records import Build, Builds, Failure
from inference.artifacts.build.workshop import Proof, Prove

__all__ = [
    "STEPS",
    "Build",
    "BuildProgress",
    "Builder",
    "Builds",
    "Engine",
    "Failure",
    "ForeignLibraryError",
    "Order",
    "Proof",
    "Prove",
    "Recipe",
    "Target",
    "export_bundle",
    "find_engine",
    "import_bundle",
    "order_for",
    "target_of",
]
