-- version: 1
-- Models the warehouse knows: bases that were used, checkpoints that were trained.
CREATE TABLE models (
    model_hash  VARCHAR NOT NULL, -- hash of the weights
    name        VARCHAR NOT NULL, -- what the user calls it
    kind        VARCHAR NOT NULL, -- base, sft, grpo, distill
    path        VARCHAR,          -- directory, relative to the warehouse where inside it
    parent_hash VARCHAR,          -- weights that training started from
    run_id      VARCHAR,          -- training run
    step        INTEGER,          -- optimizer steps of that run
    data        VARCHAR,          -- JSON: what it was trained on: versions of corpora or of problems
    config      VARCHAR,          -- JSON: the resolved training config
    parameters  BIGINT,           -- number of parameters
    created_at  TIMESTAMPTZ       -- when it was finished
);
