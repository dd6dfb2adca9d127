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
    PRIMARY KEY (stream, sequence, chain)
) WITHOUT ROWID;
CREATE INDEX audit_by_date ON audit (chain, date);
CREATE INDEX audit_by_action ON audit (chain, action, date);
CREATE INDEX audit_by_age ON audit (date);
CREATE INDEX audit_of_token ON audit (subject, sequence) WHERE stream = 'KV_runwire-tokens';

-- What was read before this table was there is read again, for the rows that belong in it.
UPDATE position SET identity = '';
