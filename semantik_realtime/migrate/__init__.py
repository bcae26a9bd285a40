"""Replacements for what applications wrote themselves, with the same calls (docs/migrate.md)."""
