-- Problems that a model solves least often, with a wrong answer that it gave.
SELECT r.question, r.model, r.samples, round(r.pass_rate, 2) AS pass_rate,
       any_value(a.extracted) AS wrong_answer
FROM problem_rates r
JOIN annotated a ON a.problem_id = r.problem_id AND a.model IS NOT DISTINCT FROM r.model
    AND a.verdict = 'wrong'
GROUP BY ALL ORDER BY pass_rate, samples DESC LIMIT 20;
