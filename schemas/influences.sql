-- version: 1
-- How training on a trace would act on target problems: sketches of gradients, and their cosine
-- (`curate influence`).
CREATE TABLE influences (
    influence_id VARCHAR NOT NULL, -- hash of model, targets and settings
    trace_id     VARCHAR,          -- traces.trace_id; null: the row is a target
    attempt      INTEGER,          -- traces.attempt
    problem_id   VARCHAR NOT NULL, -- problems.problem_id
    model_hash   VARCHAR NOT NULL, -- weights at which gradients were taken
    targets      VARCHAR NOT NULL, -- dataset of problems and split
    influence    DOUBLE,           -- mean cosine between the sketch of this trace and those of the
                                   -- targets, between -1 and 1
    norm         DOUBLE,           -- norm of the gradient of the mean loss per token
    sketch       FLOAT[],          -- random projection of the gradient, of norm 1
    created_at   TIMESTAMPTZ       -- time of the measurement
);
