CREATE TABLE topics (
    topic TEXT PRIMARY KEY,
    epoch TEXT NOT NULL,
    offset INTEGER NOT NULL,
    chain INTEGER NOT NULL,
    owner TEXT,
    expires_at REAL NOT NULL,
    deleted INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX topics_by_expiry ON topics (expires_at);

-- AUTOINCREMENT: a key is never used again, even when the newest rows are gone.
-- A deletion is a row too: offset 0, without an event.
CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    topic TEXT NOT NULL,
    offset INTEGER NOT NULL,
    chain INTEGER NOT NULL,
    producer TEXT NOT NULL,
    number INTEGER NOT NULL,
    json BLOB
);
CREATE UNIQUE INDEX events_of_a_topic ON events (topic, offset);

CREATE TABLE states (
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    json BLOB NOT NULL,
    PRIMARY KEY (topic, key)
);

-- ended_at: the offset of the attempt's last event; while it goes on, minus that at which it
-- began.
CREATE TABLE standings (
    topic TEXT NOT NULL,
    job TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    token TEXT NOT NULL,
    PRIMARY KEY (topic, job)
) WITHOUT ROWID;

CREATE TABLE producers (
    topic TEXT NOT NULL,
    producer TEXT NOT NULL,
    number INTEGER NOT NULL,
    wrote_at INTEGER NOT NULL,
    PRIMARY KEY (topic, producer)
) WITHOUT ROWID;

CREATE TABLE leases (
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    ends_at REAL NOT NULL,
    PRIMARY KEY (name, holder)
) WITHOUT ROWID;
