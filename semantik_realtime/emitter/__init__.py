"""What the process sends: the emitter, its queue, its sender and its spool files."""
