"""models.json: what models there are and how each is run."""
