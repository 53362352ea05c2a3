-- version: 1
-- Finished jobs, with their config and result.
CREATE TABLE jobs (
    job_id       VARCHAR NOT NULL, -- hash of the config and its inputs
    kind         VARCHAR NOT NULL, -- generate, annotate, filter, sft, grpo, evaluate, import
    name         VARCHAR,          -- recipe, rule set or stage
    config       VARCHAR,          -- JSON: the resolved config, without secrets
    code_version VARCHAR,          -- version of the package, with the commit if known
    rows         BIGINT,           -- rows committed by this run of the job
    failed       BIGINT,           -- rows with an error
    seconds      DOUBLE,           -- wall-clock time of this run
    finished_at  TIMESTAMPTZ       -- when it ended
);
