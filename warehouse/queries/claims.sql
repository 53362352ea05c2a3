-- Differences between models with their intervals, and what a majority vote adds to each model.
SELECT CASE WHEN baseline IS NULL THEN model ELSE model || ' - ' || baseline END AS comparison, metric, seeds,
       round(value, 3) AS value, round(low, 3) AS low, round(high, 3) AS high,
       CASE WHEN low > 0 THEN 'higher' WHEN high < 0 THEN 'lower' ELSE 'not shown' END AS reading
FROM evaluations
WHERE slice = 'all' AND (metric = 'voting' AND baseline IS NULL
                         OR baseline IS NOT NULL AND metric IN ('pass@1', 'per answer', 'greedy', 'format', 'language', 'length'))
ORDER BY metric = 'voting', created_at, comparison, metric;
