-- version: 1
-- Whether an answer is correct, according to a named verifier of a given version. Never a bare
-- boolean.
CREATE TABLE verdicts (
    trace_id         VARCHAR NOT NULL, -- traces.trace_id
    attempt          INTEGER NOT NULL, -- traces.attempt
    verifier         VARCHAR NOT NULL, -- name of the verifier
    verifier_version VARCHAR NOT NULL, -- rises when a verdict could change
    kind             VARCHAR NOT NULL, -- rule, judge, consensus
    verdict          VARCHAR NOT NULL, -- correct, wrong, unverifiable
    extracted        VARCHAR,          -- the answer that was judged
    detail           VARCHAR,          -- why, in a few words
    seconds          DOUBLE            -- time it took
);
