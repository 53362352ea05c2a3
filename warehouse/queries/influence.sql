-- Traces whose gradient agrees most, and least, with what would make the targets likelier (`curate influence`; experimental).
SELECT trace_id, round(influence, 4) AS influence, verdict, round(quality, 3) AS quality, difficulty, question, answer
FROM annotated WHERE influence IS NOT NULL
QUALIFY row_number() OVER (ORDER BY influence DESC) <= 10 OR row_number() OVER (ORDER BY influence) <= 10
ORDER BY influence DESC;
