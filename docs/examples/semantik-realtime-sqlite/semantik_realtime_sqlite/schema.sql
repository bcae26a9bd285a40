-- One row for each topic that is known, or deleted and still refusing drafts.
CREATE TABLE topics (
    topic TEXT PRIMARY KEY,
    epoch TEXT NOT NULL,
    offset INTEGER NOT NULL,
    chain INTEGER NOT NULL,
    owner TEXT,
    due_at REAL,
    expires_at REAL NOT NULL,
    deleted INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX topics_by_expiry ON topics (expires_at);

-- AUTOINCREMENT: a key is never used again, even after the newest rows are deleted.
-- The deletion of a topic is a row, too: with offset 0 and without json.
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

-- For each key, the last event with a state.
CREATE TABLE states (
    topic TEXT NOT NULL,
    key TEXT NOT NULL,
    json BLOB NOT NULL,
    PRIMARY KEY (topic, key)
);

-- For each job, its newest attempt. ended_at: the offset of the attempt's terminal event; while
-- the attempt runs, the negative of the topic's offset when it was claimed or its first event
-- was appended.
CREATE TABLE attempts (
    topic TEXT NOT NULL,
    job TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    ended_at INTEGER NOT NULL,
    token TEXT NOT NULL,
    PRIMARY KEY (topic, job)
) WITHOUT ROWID;

-- For each producer, the number of its last draft, and when that was appended (wrote_at), in
-- seconds since 1970.
CREATE TABLE producers (
    topic TEXT NOT NULL,
    producer TEXT NOT NULL,
    number INTEGER NOT NULL,
    wrote_at REAL NOT NULL,
    PRIMARY KEY (topic, producer)
) WITHOUT ROWID;

CREATE TABLE leases (
    name TEXT NOT NULL,
    holder TEXT NOT NULL,
    ends_at REAL NOT NULL,
    PRIMARY KEY (name, holder)
) WITHOUT ROWID;

-- For each worker process that runs jobs, when its deadline is over.
CREATE TABLE holders (
    holder TEXT PRIMARY KEY,
    ends_at REAL NOT NULL
) WITHOUT ROWID;
CREATE INDEX holders_by_deadline ON holders (ends_at);

CREATE TABLE held_jobs (
    holder TEXT NOT NULL,
    job TEXT NOT NULL,
    record BLOB NOT NULL,
    PRIMARY KEY (holder, job)
);
