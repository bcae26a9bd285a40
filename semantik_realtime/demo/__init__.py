"""A small document indexer: the reference for an application that uses semantik-realtime."""
