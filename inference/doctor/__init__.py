"""The doctor: what could be wrong with an installation, found and told with the way to mend it.

One function per question, in the table of `inference.doctor.checks`; each looks at a `Scene` and yields
`Finding` values. Nothing is changed by looking.
"""

from inference.doctor.checks import CHECKS, examine
from inference.doctor.finding import Check, Finding, Scene, Verdict

__all__ = ["CHECKS", "Check", "Finding", "Scene", "Verdict", "examine"]
