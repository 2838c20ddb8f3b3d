"""Worker processes: who runs, who may use which bytes, and how they are talked to."""
