"""One SQLite file as a backend of semantik-realtime, for the processes of one host.

The model: one row for each topic (`schema.sql`), and one table for all events,
whose primary key grows with every commit. SQLite allows one write transaction
at a time, so the key is the order of commits over all topics and processes: a
reader that has read everything up to a key has missed nothing. An append is
one transaction, and a snapshot is one, too.
"""
