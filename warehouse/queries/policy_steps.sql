-- Behaviour over RL training (the last columns need `curate annotate` on the rollouts).
SELECT run_id, policy_step, rollouts, round(reward, 3) AS reward, round(accuracy, 3) AS accuracy,
       round(tokens, 1) AS tokens, round(truncated, 3) AS truncated,
       round(well_formed, 3) AS well_formed,
       round(reflections, 3) AS reflections, round(verifications, 3) AS verifications,
       round(steps, 2) AS steps,
       round(target_language_share, 3) AS target_language_share
FROM policy_steps ORDER BY run_id, policy_step;
