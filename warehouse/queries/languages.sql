-- Languages of the reasoning, and the share of traces that mix them.
SELECT recipe, model, dominant_language, traces, round(share_of_traces, 3) AS share_of_traces,
       round(mixed, 3) AS mixed,
       round(target_language_share, 3) AS target_language_share
FROM language_mixture ORDER BY recipe, model, traces DESC;
