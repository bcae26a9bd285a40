"""Fan-out: channels, the connections that watch them, and the registry of both."""
