-- Traces dropped by each rule of each filter: alone, and as the first rule that a trace failed.
SELECT corpus, corpus_version, position, rule, sum(drops_alone) AS drops_alone,
       sum(drops_first) AS drops_first,
       sum(remaining) AS remaining
FROM funnel GROUP BY ALL ORDER BY corpus, corpus_version, position;
