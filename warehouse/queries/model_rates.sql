-- Pass rate and style of each model.
SELECT model, recipe, traces, problems, round(pass_rate, 3) AS pass_rate,
       round(truncated, 3) AS truncated,
       round(well_formed, 3) AS well_formed, round(readable, 3) AS readable,
       round(mixed_language, 3) AS mixed_language, round(tokens, 1) AS tokens
FROM model_rates ORDER BY recipe, model;
