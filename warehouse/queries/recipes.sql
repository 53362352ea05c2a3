-- Traces per recipe: how many there are, are correct, readable and well-formed.
SELECT recipe, model, count(*) AS traces,
       round(avg((verdict = 'correct')::INT), 3) AS correct,
       round(avg(readable::INT), 3) AS readable,
       round(avg(well_formed::INT), 3) AS well_formed,
       round(avg(completion_tokens), 1) AS tokens
FROM annotated GROUP BY ALL ORDER BY ALL;
