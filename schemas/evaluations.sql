-- version: 1
-- Evaluations in long form: one row per metric, slice and model, or pair of models for a
-- difference.
CREATE TABLE evaluations (
    evaluation_id VARCHAR NOT NULL, -- hash of models, problems, sampling and verifiers
    model         VARCHAR NOT NULL, -- label of the model
    model_hash    VARCHAR,          -- hash of its weights
    baseline      VARCHAR,          -- label of the model it is compared with; null for a level
    problems      VARCHAR,          -- dataset of problems and split
    slice         VARCHAR,          -- all, or source=..., difficulty=...
    metric        VARCHAR NOT NULL, -- pass@1, pass@k, cons@k, voting, greedy, per answer, format,
                                    -- language, length, truncated
    k             INTEGER,          -- samples per problem
    seeds         INTEGER,          -- training seeds that the estimate is a mean over
    value         DOUBLE,           -- the estimate; a share between 0 and 1, or tokens for length
    low           DOUBLE,           -- lower end of the 95 % bootstrap interval over problems and
                                    -- seeds
    high          DOUBLE,           -- upper end
    problem_count INTEGER,          -- problems in the slice
    temperature   DOUBLE,           -- of sampling
    top_p         DOUBLE,           -- of sampling
    created_at    TIMESTAMPTZ       -- time of the evaluation
);
