-- Balance over the sources of a cold start: how many examples of each corpus came from which.
WITH taken AS (
    SELECT c.corpus, a.recipe, a.model, a.completion_tokens, a.quality,
           CASE WHEN a.engine = 'solution' THEN 'worked solution'
                WHEN a.parent_trace_id IS NOT NULL THEN 'rewritten trace'
                WHEN a.recipe = 'import' THEN 'imported'
                WHEN a.template LIKE '%+%' THEN 'asked with worked examples'
                ELSE 'asked directly' END AS source
    FROM corpora c JOIN annotated a ON a.trace_id = c.trace_id AND a.attempt = c.attempt
), counted AS (
    SELECT corpus, source, recipe, model, count(*) AS examples,
           round(avg(completion_tokens), 1) AS tokens, round(avg(quality), 3) AS quality
    FROM taken GROUP BY ALL
)
SELECT *, round(examples / sum(examples) OVER (PARTITION BY corpus), 3) AS share
FROM counted ORDER BY corpus, examples DESC, source, recipe, model;
