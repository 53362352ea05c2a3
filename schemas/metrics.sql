-- version: 1
-- What was measured while training ran.
CREATE TABLE metrics (
    run_id     VARCHAR NOT NULL, -- training run
    step       INTEGER NOT NULL, -- optimizer step, from 1; 0: measured before the first
    name       VARCHAR NOT NULL, -- loss, reward, kl, entropy, ...
    value      DOUBLE,           -- in the unit that docs/train.md gives
    created_at TIMESTAMPTZ       -- when
);
