-- version: 1
-- One sampled completion of one problem, and everything that determined it.
CREATE TABLE traces (
    trace_id             VARCHAR NOT NULL, -- hash of what determines the text (see curate/warehouse/identity.py)
    attempt              INTEGER NOT NULL, -- 0, then one more for each redo (longer limit, retried failure)
    job_id               VARCHAR,          -- the job that made the row
    problem_id           VARCHAR NOT NULL, -- problems.problem_id
    sample_index         INTEGER NOT NULL, -- 0, 1, ... within the problem
    recipe               VARCHAR NOT NULL, -- cold-start, r1-zero, rejection, distill, evaluate, grpo, import
    form                 VARCHAR NOT NULL, -- output form asked for: r1-zero, r1 (or r1[open|close]), plain
    template             VARCHAR,          -- name and hash of the prompt template
    model                VARCHAR,          -- model as the user named it
    model_hash           VARCHAR,          -- hash of the weights
    engine               VARCHAR,          -- vllm, openai, transformers, stub, solution, import
    prompt               VARCHAR,          -- rendered text
    prompt_token_ids     INTEGER[],        -- as the engine saw them
    completion           VARCHAR,          -- text as sampled, special tokens left out
    completion_token_ids INTEGER[],        -- as sampled, the end token included; null where the backend gives none
    logprobs             FLOAT[],          -- log-probability of each sampled token under the distribution sampled from
    reasoning            VARCHAR,          -- the reasoning, as the form defines it
    answer               VARCHAR,          -- the answer or summary, as the form defines it
    finish_reason        VARCHAR NOT NULL, -- stop, length, error
    error                VARCHAR,          -- why a request failed
    prompt_tokens        INTEGER,          -- tokens of the prompt
    completion_tokens    INTEGER,          -- sampled tokens
    max_tokens           INTEGER,          -- limit on sampled tokens
    seed                 BIGINT,           -- seed of this request
    temperature          DOUBLE,           -- of sampling
    top_p                DOUBLE,           -- of sampling
    policy_step          INTEGER,          -- optimizer steps the policy had made; null outside RL
    messages             STRUCT(role VARCHAR, content VARCHAR, reasoning VARCHAR, tool_calls VARCHAR, name VARCHAR)[], -- all turns of an imported conversation (system, user, assistant, tool); completion is the last assistant turn
    tools                VARCHAR,          -- JSON: the tools that the conversation could call
    labels               VARCHAR,          -- JSON: labels and scores that came with an imported trace; `labels.NAME` in rules
    parent_trace_id      VARCHAR,          -- the trace this one was made from (a rewrite); null for a sample
    cost                 DOUBLE,           -- what the request cost, in the currency of the engine's prices; null: no prices
    created_at           TIMESTAMPTZ       -- when the completion finished
);
