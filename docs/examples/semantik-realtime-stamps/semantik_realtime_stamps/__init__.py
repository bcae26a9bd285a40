"""Stamps every event and measures every hook that moves data."""
