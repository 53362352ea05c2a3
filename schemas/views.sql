-- What people ask most often, over `annotated`: one row a trace with everything joined.

-- How often each problem is solved, by model and recipe.
CREATE OR REPLACE VIEW problem_rates AS
SELECT problem_id, any_value(question) AS question, any_value(source) AS source, model, recipe, count(*) AS samples,
       count(*) FILTER (verdict = 'correct') AS correct,
       avg((verdict = 'correct')::INT) FILTER (verdict <> 'unverifiable') AS pass_rate
FROM annotated GROUP BY problem_id, model, recipe;

-- How behaviour moves with training: one row a run and policy step.
CREATE OR REPLACE VIEW policy_steps AS
SELECT r.run_id, r.policy_step, count(*) AS rollouts, avg(r.reward) AS reward,
       avg((a.verdict = 'correct')::INT) AS accuracy, avg(a.completion_tokens) AS tokens,
       avg((a.finish_reason = 'length')::INT) AS truncated
FROM rollouts r LEFT JOIN annotated a ON a.trace_id = r.trace_id
GROUP BY r.run_id, r.policy_step;

-- What was made from what: one row an edge. Walk it up with a recursive query, or with `curate lineage`.
CREATE OR REPLACE VIEW lineage AS
SELECT ref AS child, unnest(parents) AS parent, sealed_at, rows, code_version FROM manifests;
