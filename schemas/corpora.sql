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
    prompt      VARCHAR NOT NULL, -- rendered anew, without worked examples: what the trainer conditions on
    completion  VARCHAR NOT NULL, -- what the trainer learns, with its tags
    messages    STRUCT(role VARCHAR, content VARCHAR)[], -- question and completion as chat messages
    quality     DOUBLE,           -- the score the selection ranked by
    difficulty  DOUBLE,           -- difficulty of the problem
    weight      DOUBLE            -- weight of the row in a mixture; 1 by default
);
