-- How far runs say they have come: the latest report of each task, as the stream keeps it.
CREATE TABLE progress (
    task     INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL,       -- LOGS sequence
    run      TEXT NOT NULL,
    entry    BLOB NOT NULL           -- JSON
);
