-- One row per trace with its problem, verdict and signals: the view `annotated`, newest first.
SELECT trace_id, recipe, model, source, verdict, judge_verdict, readable, mixed_language,
       round(quality, 3) AS quality,
       completion_tokens, dominant_language, reflection_count, question
FROM annotated ORDER BY created_at DESC NULLS LAST, trace_id LIMIT 50;
