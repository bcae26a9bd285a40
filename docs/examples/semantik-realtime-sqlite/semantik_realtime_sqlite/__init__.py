"""One SQLite file as a backend of semantik-realtime, for the processes of one host.

The model: a row for each topic (`schema.sql`), and every event in one table
whose primary key grows with every commit. SQLite lets one transaction write at
a time, so that key is the order in which things happened, over all topics and
processes: a reader that remembers the last key it saw has missed nothing. An
append is one transaction, and a look is one too.
"""
