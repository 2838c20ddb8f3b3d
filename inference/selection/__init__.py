"""Which model serves a request, and why."""

from inference.selection.selector import Candidate, Resident, Selection, World, select
from inference.selection.tasks import Task, classify

__all__ = ["Candidate", "Resident", "Selection", "Task", "World", "classify", "select"]
