-- version: 1
-- Models: bases that were used and checkpoints that were trained.
CREATE TABLE models (
    model_hash  VARCHAR NOT NULL, -- hash of the weights
    name        VARCHAR NOT NULL, -- name given by the user
    kind        VARCHAR NOT NULL, -- base, sft, grpo, distill
    path        VARCHAR,          -- directory, relative to the warehouse if inside it
    parent_hash VARCHAR,          -- weights that training started from
    run_id      VARCHAR,          -- training run
    step        INTEGER,          -- optimizer steps of that run
    data        VARCHAR,          -- JSON: training data: versions of corpora or of problems
    config      VARCHAR,          -- JSON: the resolved training config
    parameters  BIGINT,           -- number of parameters
    created_at  TIMESTAMPTZ       -- when it was finished
);
