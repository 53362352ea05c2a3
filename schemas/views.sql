-- Frequent questions, over `annotated`: one row per trace with everything joined.

-- How often each problem is solved, by model and recipe.
CREATE OR REPLACE VIEW problem_rates AS
SELECT problem_id, any_value(question) AS question, any_value(source) AS source, model, recipe,
       count(*) AS samples,
       count(*) FILTER (verdict = 'correct') AS correct,
       avg((verdict = 'correct')::INT) FILTER (verdict <> 'unverifiable') AS pass_rate
FROM annotated GROUP BY problem_id, model, recipe;

-- Pass rate and style of each model: one row per model and recipe.
CREATE OR REPLACE VIEW model_rates AS
SELECT model, model_hash, recipe, count(*) AS traces, count(DISTINCT problem_id) AS problems,
       count(*) FILTER (verdict = 'correct') AS correct,
       count(*) FILTER (verdict = 'unverifiable') AS unverifiable,
       avg((verdict = 'correct')::INT) FILTER (verdict <> 'unverifiable') AS pass_rate,
       avg((finish_reason = 'length')::INT) AS truncated, avg(well_formed::INT) AS well_formed,
       avg(readable::INT) FILTER (characters IS NOT NULL) AS readable,
       avg(mixed_language::INT) FILTER (language_words IS NOT NULL) AS mixed_language,
       avg(completion_tokens) AS tokens
FROM annotated GROUP BY model, model_hash, recipe;

-- Languages of the reasoning: one row per recipe, model and dominant language (null: no words).
CREATE OR REPLACE VIEW language_mixture AS
SELECT recipe, model, dominant_language, count(*) AS traces,
       count(*) / sum(count(*)) OVER (PARTITION BY recipe, model) AS share_of_traces,
       avg(mixed_language::INT) AS mixed, avg(dominant_language_share) AS dominant_language_share,
       avg(target_language_share) AS target_language_share, avg(share_en) AS share_en,
       avg(share_zh) AS share_zh
FROM annotated WHERE language_words IS NOT NULL GROUP BY recipe, model, dominant_language;

-- Behaviour over training: one row per run and policy step. Columns from signals are null until
-- `curate annotate` has measured the rollouts.
CREATE OR REPLACE VIEW policy_steps AS
SELECT r.run_id, r.policy_step, count(*) AS rollouts, avg(r.reward) AS reward,
       avg((a.verdict = 'correct')::INT) AS accuracy, avg(a.completion_tokens) AS tokens,
       avg((a.finish_reason = 'length')::INT) AS truncated, avg(a.well_formed::INT) AS well_formed,
       avg(a.reflection_count) AS reflections, avg(a.verification_count) AS verifications,
       avg(a.backtrack_count) AS backtracks, avg(a.step_count) AS steps,
       avg(a.reflective_words) AS reflective_words,
       avg(a.target_language_share) AS target_language_share,
       avg(a.mixed_language::INT) FILTER (a.language_words IS NOT NULL) AS mixed_language,
       avg(a.readable::INT) FILTER (a.characters IS NOT NULL) AS readable
FROM rollouts r LEFT JOIN annotated a ON a.trace_id = r.trace_id
GROUP BY r.run_id, r.policy_step;

-- Rescored rollouts next to the rewards that the run trained on. `side` is what training does to
-- the completion: `for` it, `against` it, or `none`.
CREATE OR REPLACE VIEW rescored_sides AS
SELECT n.rescore, n.rescore_id, n.run_id, n.policy_step, n.problem_id, n.sample_index, n.trace_id,
       o.reward AS reward_before, n.reward, o.advantage AS advantage_before, n.advantage, n.verdict,
       CASE WHEN o.advantage > 0 THEN 'for' WHEN o.advantage < 0 THEN 'against' ELSE 'none' END
           AS side_before,
       CASE WHEN n.advantage > 0 THEN 'for' WHEN n.advantage < 0 THEN 'against' ELSE 'none' END
           AS side
FROM rescored n JOIN rollouts o ON o.trace_id = n.trace_id AND o.run_id = n.run_id;

-- Corpora by version.
CREATE OR REPLACE VIEW corpus_versions AS
SELECT c.dataset AS corpus, c.version, count(*) AS rows, count(DISTINCT c.problem_id) AS problems,
       count(DISTINCT c.source) AS sources, avg(c.quality) AS quality,
       avg(c.difficulty) AS difficulty,
       avg(length(c.completion)) AS characters, any_value(m.sealed_at) AS sealed_at
FROM corpora c LEFT JOIN manifests m ON m.ref = 'corpora/' || c.dataset || '/' || c.version
GROUP BY c.dataset, c.version;

-- What was made from what: one row per edge. `ancestry` and `curate lineage` follow it.
CREATE OR REPLACE VIEW lineage AS
SELECT ref AS child, unnest(parents) AS parent, sealed_at, rows, code_version FROM manifests;

-- All ancestors of a version or a model: from corpora down to problems, through the models that
-- sampled and their own training data. `depth` is the length of the shortest path.
CREATE OR REPLACE VIEW ancestry AS
WITH RECURSIVE edges AS (
    SELECT child, parent FROM lineage
    UNION SELECT 'model:' || model_hash, 'model:' || parent_hash FROM models
          WHERE parent_hash IS NOT NULL
    UNION SELECT 'model:' || model_hash,
          unnest(from_json(data, '{"corpora": ["VARCHAR"]}').corpora) FROM models
    UNION SELECT 'model:' || model_hash,
          unnest(from_json(data, '{"problems": ["VARCHAR"]}').problems) FROM models
    UNION SELECT 'model:' || model_hash,
          unnest(from_json(data, '{"traces": ["VARCHAR"]}').traces) FROM models
), walk AS (
    SELECT child AS ref, parent AS ancestor, 1 AS depth FROM edges
    UNION SELECT w.ref, e.parent, w.depth + 1 FROM walk w JOIN edges e ON e.child = w.ancestor
          WHERE w.depth < 100
)
SELECT ref, ancestor, min(depth) AS depth FROM walk GROUP BY ref, ancestor;

-- The newest version of each corpus: one row per example.
CREATE OR REPLACE VIEW latest_corpora AS
SELECT c.* FROM corpora c JOIN (
    SELECT dataset, arg_max(version, sealed_at) AS version FROM manifests WHERE "table" = 'corpora' GROUP BY dataset
) m ON m.dataset = c.dataset AND m.version = c.version;
