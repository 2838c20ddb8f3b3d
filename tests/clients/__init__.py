"""The API against the clients that people have, from the package index."""
