-- What another reward would have changed (`curate rescore`): completions that change sides, by problem and step.
SELECT r.rescore, r.policy_step, any_value(p.question) AS question, count(*) AS rollouts,
       count(*) FILTER (side <> side_before) AS changed, count(*) FILTER (side = 'for' AND side_before <> 'for') AS now_for,
       count(*) FILTER (side = 'against' AND side_before <> 'against') AS now_against,
       round(avg(reward_before), 3) AS reward_before, round(avg(reward), 3) AS reward,
       list(round(advantage_before, 2) ORDER BY sample_index) AS advantages_before,
       list(round(advantage, 2) ORDER BY sample_index) AS advantages
FROM rescored_sides r JOIN problems p ON p.problem_id = r.problem_id
GROUP BY r.rescore, r.policy_step, r.problem_id HAVING changed > 0 ORDER BY changed DESC, r.policy_step, question LIMIT 50;
