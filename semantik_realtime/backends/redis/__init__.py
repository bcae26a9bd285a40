"""The backend on Redis or Valkey, which is the default."""
