-- The read model: what EVENTS and LOGS say, as rows. Nothing here is the truth; delete the file and it is rebuilt.

-- How far each stream has been read. Written in the same transaction as the rows that come of it.
CREATE TABLE position (
    stream   TEXT PRIMARY KEY,
    identity TEXT NOT NULL,          -- when the stream was created: a new stream of the same name starts over
    sequence INTEGER NOT NULL        -- last sequence that was read
) WITHOUT ROWID;

-- One row per task that exists: its last event. Every combination of a list's filters, sorted by id, is a stretch of
-- one of the indexes, or a few of them merged.
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
CREATE INDEX task_by_action ON task (chain, action, code, id);
CREATE INDEX task_by_campaign ON task (chain, campaign, code, id) WHERE campaign IS NOT NULL;
CREATE INDEX task_by_campaign_and_action ON task (chain, campaign, action, code, id) WHERE campaign IS NOT NULL;

-- How many tasks there are, for every combination of a list's filters: each task counts in up to four rows.
CREATE TABLE tally (
    chain    INTEGER NOT NULL,
    action   TEXT NOT NULL,          -- '': whatever it is
    campaign TEXT NOT NULL,          -- '': whatever it is
    code     TEXT NOT NULL,
    tasks    INTEGER NOT NULL,
    PRIMARY KEY (chain, action, campaign, code)
) WITHOUT ROWID;

-- Tasks that were deleted: their log lines may still be on the way.
CREATE TABLE deleted (
    task     INTEGER PRIMARY KEY,
    sequence INTEGER NOT NULL        -- EVENTS sequence of the deletion
);

-- One row per ended run, derived from its final event alone, and as many per task and code as the stream keeps.
CREATE TABLE run (
    sequence INTEGER PRIMARY KEY,    -- EVENTS sequence of the final event
    task     INTEGER NOT NULL,
    id       TEXT NOT NULL,
    code     TEXT NOT NULL,
    ordinal  INTEGER NOT NULL,       -- counts up per task and code; the oldest are pruned by it
    document BLOB NOT NULL           -- the run, JSON
);
CREATE UNIQUE INDEX run_by_id ON run (task, id);
CREATE UNIQUE INDEX run_by_ordinal ON run (task, code, ordinal);

-- Log lines, as many per task as the stream keeps.
CREATE TABLE log (
    task     INTEGER NOT NULL,
    sequence INTEGER NOT NULL,       -- LOGS sequence
    run      TEXT NOT NULL,
    entry    BLOB NOT NULL,          -- JSON
    PRIMARY KEY (task, sequence)
) WITHOUT ROWID;
CREATE INDEX log_by_run ON log (task, run, sequence);
