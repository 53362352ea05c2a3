-- version: 1
-- Sampled completions of problems, with everything that determined them.
CREATE TABLE traces (
    trace_id             VARCHAR NOT NULL, -- hash of everything that determines the text (see
                                           -- curate/warehouse/identity.py)
    attempt              INTEGER NOT NULL, -- 0, then one more for each redo (longer limit, retried
                                           -- failure)
    job_id               VARCHAR,          -- job that wrote the row
    problem_id           VARCHAR NOT NULL, -- problems.problem_id
    sample_index         INTEGER NOT NULL, -- 0, 1, ... within the problem
    recipe               VARCHAR NOT NULL, -- cold-start, r1-zero, rejection, distill, evaluate,
                                           -- grpo, import
    form                 VARCHAR NOT NULL, -- requested output form: r1-zero, r1 (or
                                           -- r1[open|close]), plain
    template             VARCHAR,          -- name and hash of the prompt template
    model                VARCHAR,          -- model as the user named it
    model_hash           VARCHAR,          -- hash of the weights
    engine               VARCHAR,          -- vllm, openai, transformers, stub, solution, import
    prompt               VARCHAR,          -- rendered text
    prompt_token_ids     INTEGER[],        -- as the engine received them
    completion           VARCHAR,          -- text as sampled, without special tokens
    completion_token_ids INTEGER[],        -- as sampled, including the end token; null if the
                                           -- backend gives none
    logprobs             FLOAT[],          -- log-probability of each sampled token under the
                                           -- distribution sampled from
    reasoning            VARCHAR,          -- the reasoning, as the form defines it
    answer               VARCHAR,          -- the answer or summary, as the form defines it
    finish_reason        VARCHAR NOT NULL, -- stop, length, error
    error                VARCHAR,          -- reason of a failed request
    prompt_tokens        INTEGER,          -- tokens of the prompt
    completion_tokens    INTEGER,          -- sampled tokens
    max_tokens           INTEGER,          -- limit on sampled tokens
    seed                 BIGINT,           -- seed of this request
    temperature          DOUBLE,           -- of sampling
    top_p                DOUBLE,           -- of sampling
    policy_step          INTEGER,          -- optimizer steps of the policy; null outside RL
    messages             STRUCT(role VARCHAR, content VARCHAR, reasoning VARCHAR,
                                tool_calls VARCHAR, name VARCHAR)[],
                                           -- all turns of an imported conversation (system, user,
                                           -- assistant, tool); completion is the last assistant
                                           -- turn
    tools                VARCHAR,          -- JSON: the tools that the conversation could call
    labels               VARCHAR,          -- JSON: labels and scores that came with an imported
                                           -- trace; `labels.NAME` in rules
    parent_trace_id      VARCHAR,          -- trace that this one rewrites; null for a sample
    cost                 DOUBLE,           -- cost of the request, in the currency of the engine's
                                           -- prices; null without prices
    created_at           TIMESTAMPTZ       -- time when the completion finished
);
