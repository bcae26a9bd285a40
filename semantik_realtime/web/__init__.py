"""The web side: from the backend's events to browsers."""
