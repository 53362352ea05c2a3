-- Balance over the sources of a cold start: how many examples of each corpus came from which.
WITH examples AS (
    SELECT c.corpus, a.recipe, a.model, a.completion_tokens, a.quality,
           CASE WHEN a.engine = 'solution' THEN 'worked solution'
                WHEN a.parent_trace_id IS NOT NULL THEN 'rewritten trace'
                WHEN a.recipe = 'import' THEN 'imported'
                WHEN a.template LIKE '%+%' THEN 'asked with worked examples'
                ELSE 'asked directly' END AS origin
    FROM corpora c JOIN annotated a ON a.trace_id = c.trace_id AND a.attempt = c.attempt
)
SELECT corpus, origin AS source, recipe, model, count(*) AS examples,
       round(count(*) / sum(count(*)) OVER (PARTITION BY corpus), 3) AS share,
       round(avg(completion_tokens), 1) AS tokens, round(avg(quality), 3) AS quality
FROM examples GROUP BY corpus, origin, recipe, model ORDER BY corpus, examples DESC;
