-- What everything else asks: one row a trace, with its problem, verdicts and signals.

-- The last attempt of each trace. Redone traces are few, so the text is never sorted.
CREATE OR REPLACE VIEW last_traces AS
SELECT t.* FROM traces t
LEFT JOIN (SELECT trace_id, max(attempt) AS last_attempt FROM traces WHERE attempt > 0 GROUP BY trace_id) r
       ON r.trace_id = t.trace_id
WHERE t.attempt >= coalesce(r.last_attempt, 0);

-- The newest verdict of each kind.
CREATE OR REPLACE VIEW last_verdicts AS
SELECT trace_id, attempt,
       arg_max(verdict, coalesce(try_cast(split_part(verifier_version, '-', 1) AS INTEGER), 0)) FILTER (kind = 'rule')  AS verdict,
       arg_max(verifier, coalesce(try_cast(split_part(verifier_version, '-', 1) AS INTEGER), 0)) FILTER (kind = 'rule') AS verified_by,
       arg_max(extracted, coalesce(try_cast(split_part(verifier_version, '-', 1) AS INTEGER), 0)) FILTER (kind = 'rule') AS extracted,
       arg_max(detail, coalesce(try_cast(split_part(verifier_version, '-', 1) AS INTEGER), 0)) FILTER (kind = 'rule')   AS verdict_detail,
       arg_max(verdict, coalesce(try_cast(split_part(verifier_version, '-', 1) AS INTEGER), 0)) FILTER (kind = 'judge') AS judge_verdict,
       arg_max(verdict, coalesce(try_cast(split_part(verifier_version, '-', 1) AS INTEGER), 0)) FILTER (kind = 'consensus') AS consensus_verdict
FROM verdicts GROUP BY trace_id, attempt;

CREATE OR REPLACE VIEW annotated AS
SELECT t.*,
       p.question, p.source, p.domain, p.reference, p.solution, p.difficulty, p.split, p.target_language, p.verifier,
       v.verdict, v.verified_by, v.extracted, v.verdict_detail, v.judge_verdict, v.consensus_verdict,
       s.* EXCLUDE (trace_id, attempt)
FROM last_traces t
LEFT JOIN problems p ON p.problem_id = t.problem_id
LEFT JOIN last_verdicts v ON v.trace_id = t.trace_id AND v.attempt = t.attempt
LEFT JOIN measured s ON s.trace_id = t.trace_id AND s.attempt = t.attempt;

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
