-- The audit trail: who changed what, and which calls were refused. From three streams, a row per chain that is to know.
CREATE TABLE audit (
    stream   TEXT NOT NULL,
    sequence INTEGER NOT NULL,       -- of the message that tells of it
    chain    INTEGER NOT NULL,
    date     INTEGER NOT NULL,       -- milliseconds since 1970
    actor    TEXT NOT NULL,          -- id of an access token, or "operator"
    action   TEXT NOT NULL,          -- task.created, token.rotated, call.refused ...
    subject  TEXT NOT NULL,          -- /tasks/17, /access_tokens/...
    detail   TEXT NOT NULL,          -- JSON
    source   TEXT NOT NULL,          -- subject of the message
    ordinal  INTEGER NOT NULL,       -- counts up per source; the oldest are forgotten by it, as their stream forgets them
    PRIMARY KEY (stream, sequence, chain)
) WITHOUT ROWID;
CREATE INDEX audit_by_date ON audit (chain, date);
CREATE INDEX audit_by_action ON audit (chain, action, date);
CREATE INDEX audit_by_age ON audit (date);
CREATE INDEX audit_by_source ON audit (source, ordinal);

-- The sources that have rows, and how many messages each has had since the first of them.
CREATE TABLE audited (
    source   TEXT PRIMARY KEY,
    messages INTEGER NOT NULL
) WITHOUT ROWID;

-- What was read before this table was there is read again, for the rows that belong in it.
UPDATE position SET identity = '';
