"""The sinks of an application: their registry, and the runner that gives them their events."""
