"""Redis and Valkey: the default backend."""
