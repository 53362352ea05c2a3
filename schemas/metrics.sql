-- version: 1
-- Measurements taken during training.
CREATE TABLE metrics (
    run_id     VARCHAR NOT NULL, -- training run
    step       INTEGER NOT NULL, -- optimizer step, from 1; 0: before the first step
    name       VARCHAR NOT NULL, -- loss, reward, kl, entropy, ...
    value      DOUBLE,           -- in the unit that docs/train.md gives
    created_at TIMESTAMPTZ       -- time of the measurement
);
