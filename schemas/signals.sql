-- version: 1
-- Measured columns of a trace. A signal never decides. Columns are stored per group of signals and group version.
CREATE TABLE signals (
    trace_id VARCHAR NOT NULL, -- traces.trace_id
    attempt  INTEGER NOT NULL  -- traces.attempt
);
