"""Where weights come from: the package index, the model hub, a web server, a file of the user's."""

from inference.artifacts.sources.progress import Progress
from inference.artifacts.sources.pull import fetch, import_file

__all__ = ["Progress", "fetch", "import_file"]
