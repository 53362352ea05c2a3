-- version: 1
-- A named, versioned selection of traces in the shape a trainer reads.
CREATE TABLE corpora (
    corpus      VARCHAR NOT NULL, -- name of the corpus
    trace_id    VARCHAR,          -- traces.trace_id
    attempt     INTEGER,          -- traces.attempt
    problem_id  VARCHAR NOT NULL, -- problems.problem_id
    source      VARCHAR,          -- source of the problem
    domain      VARCHAR,          -- domain of the problem
    recipe      VARCHAR,          -- recipe of the trace
    form        VARCHAR,          -- output form of the completion
    prompt      VARCHAR NOT NULL, -- rendered again, without worked examples; the trainer conditions
                                  -- on it
    completion  VARCHAR NOT NULL, -- target of the trainer, with its tags
    messages    STRUCT(role VARCHAR, content VARCHAR)[], -- question and completion as chat messages
    quality     DOUBLE,           -- score by which the selection ranked
    difficulty  DOUBLE,           -- difficulty of the problem
    weight      DOUBLE            -- weight of the row in a mixture; 1 by default
);
