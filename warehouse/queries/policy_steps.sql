-- How behaviour moves while RL trains.
SELECT run_id, policy_step, rollouts, round(reward, 3) AS reward, round(accuracy, 3) AS accuracy,
       round(tokens, 1) AS tokens, round(truncated, 3) AS truncated
FROM policy_steps ORDER BY run_id, policy_step;
