-- Pass rate of each problem, by model and recipe: the hardest first.
SELECT problem_id, source, model, recipe, samples, correct, round(pass_rate, 3) AS pass_rate,
       question
FROM problem_rates ORDER BY pass_rate, problem_id, model, recipe LIMIT 100;
