"""What the command line does: a checkpoint becomes a configuration, shards and a library."""
