"""Values of environment variables: texts in, values out."""

from __future__ import annotations

from semantik_realtime.core.words import Words


def split_list(value: object) -> object:
    """Return the items of a text with commas; any other value as it is.

    >>> split_list("HS256, RS256")
    ['HS256', 'RS256']
    """
    if isinstance(value, str):
        return [item.strip() for item in value.split(",") if item.strip()]
    return value


def split_pairs(value: object) -> object:
    """Return the pairs of a text with commas; any other value as it is.

    >>> split_pairs("operation_failed=job_failed, processing=running")
    {'operation_failed': 'job_failed', 'processing': 'running'}
    """
    if not isinstance(value, str):
        return value
    pairs: dict[str, str] = {}
    for item in value.split(","):
        theirs, _, ours = (part.strip() for part in item.partition("="))
        if theirs in pairs:
            raise ValueError(f"{theirs} is named twice")
        if item.strip():
            pairs[theirs] = ours
    return pairs


def check_paths(paths: list[str]) -> list[str]:
    """Return ``paths``, each of which begins with a slash.

    Raises:
        ValueError: one of them does not.
    """
    for path in paths:
        if not path.startswith("/"):
            raise ValueError(f"{path!r} does not begin with a slash")
    return paths


def check_words(pairs: dict[str, str]) -> dict[str, str]:
    """Return ``pairs``, which `semantik_realtime.core.words.Words` accepts."""
    Words(pairs)
    return pairs
