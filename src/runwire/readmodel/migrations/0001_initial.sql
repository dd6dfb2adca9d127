-- The read model: what EVENTS and LOGS say, as rows. Nothing here is the truth; delete the file and it is rebuilt.

-- How far each stream has been read. Written in the same transaction as the rows that come of it.
CREATE TABLE position (
    stream   TEXT PRIMARY KEY,
    identity TEXT NOT NULL,          -- when the stream was created: a new stream of the same name starts over
    sequence INTEGER NOT NULL        -- last sequence that was read
) WITHOUT ROWID;

-- One row per task that exists: its last event.
CREATE TABLE task (
    id       INTEGER PRIMARY KEY,
    chain    INTEGER NOT NULL,
    sequence INTEGER NOT NULL,       -- EVENTS sequence of the document
    code     TEXT NOT NULL,
    action   TEXT NOT NULL,
    campaign INTEGER,                -- target.campaign, where it is an integer
    document BLOB NOT NULL           -- JSON, as the event carried it
);
CREATE INDEX task_by_chain ON task (chain, id);
CREATE INDEX task_by_code ON task (chain, code, id);
CREATE INDEX task_by_action ON task (chain, action, id);
CREATE INDEX task_by_campaign ON task (chain, campaign, id) WHERE campaign IS NOT NULL;

-- One row per ended run, derived from its final event alone, and as many per task and code as the stream keeps.
CREATE TABLE run (
    task     INTEGER NOT NULL,
    id       TEXT NOT NULL,
    code     TEXT NOT NULL,
    sequence INTEGER NOT NULL,       -- EVENTS sequence of the final event
    ordinal  INTEGER NOT NULL,       -- counts up per task and code; the oldest are pruned by it
    document BLOB NOT NULL,          -- the run, JSON
    PRIMARY KEY (task, id)
) WITHOUT ROWID;
CREATE UNIQUE INDEX run_by_ordinal ON run (task, code, ordinal);
CREATE INDEX run_by_sequence ON run (task, sequence);

-- Log lines, as many per task as the stream keeps.
CREATE TABLE log (
    task     INTEGER NOT NULL,
    sequence INTEGER NOT NULL,       -- LOGS sequence
    run      TEXT NOT NULL,
    entry    BLOB NOT NULL,          -- JSON
    PRIMARY KEY (task, sequence)
) WITHOUT ROWID;
