"""The hub source: one commit of a repository of the model hub.

huggingface_hub says where the hub is, who asks and what the user's own cache has, so that its
settings (HF_*) and logins count; the files are brought by `inference.artifacts.sources.download`,
which goes on after a cut and ends within a second of a cancel. Only tensors and plain text are taken:
a pickle runs code when it is loaded, and so does *.py.
"""

from inference.artifacts.sources.hub.fetch import fetch_hub

__all__ = ["fetch_hub"]
