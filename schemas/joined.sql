-- Base of all other views: one row per trace, with its problem, verdicts and signals.

-- The last attempt of each trace. Few traces are redone: the view avoids sorting their texts.
CREATE OR REPLACE VIEW redone AS
SELECT trace_id, max(attempt) AS last_attempt FROM traces WHERE attempt > 0 GROUP BY trace_id;

-- Imported traces whose id stands in several datasets: before ids depended on the dataset, a text
-- imported under two names had one id. The first one counts.
CREATE OR REPLACE VIEW doubled AS
SELECT trace_id, min(dataset || '.' || version) AS home
FROM traces WHERE recipe = 'import'
GROUP BY trace_id HAVING min(dataset || '.' || version) <> max(dataset || '.' || version);

CREATE OR REPLACE VIEW last_traces AS
SELECT t.*, CASE WHEN d.home IS NOT NULL THEN hash(d.home) END AS about
FROM traces t
LEFT JOIN redone r ON r.trace_id = t.trace_id
LEFT JOIN doubled d ON d.trace_id = t.trace_id
WHERE t.attempt >= coalesce(r.last_attempt, 0)
      AND coalesce(d.home = t.dataset || '.' || t.version, TRUE);

-- The newest verdict of each kind. For rules it is that of the verifier that the problem names, if
-- it names one; verdicts of other verifiers are in `verdicts`. Judges of reasoning (coherence) are
-- separate from judges of answers.
CREATE OR REPLACE VIEW last_verdicts AS
-- `contested` traces are judged by several verifiers: only these need their problem, which costs a
-- join of all traces.
WITH contested AS (
    SELECT trace_id, attempt FROM verdicts WHERE kind = 'rule'
    GROUP BY trace_id, attempt HAVING min(verifier) <> max(verifier)
), own AS (
    SELECT c.trace_id, c.attempt, p.verifier FROM contested c
    JOIN traces t ON t.trace_id = c.trace_id AND t.attempt = c.attempt
    JOIN problems p ON p.problem_id = t.problem_id
), ordered AS (
    SELECT v.trace_id, v.attempt, v.verifier, v.verdict, v.extracted, v.detail, v.kind,
           -- by class, then version, then any deterministic order
           (CASE WHEN v.kind = 'rule' AND v.verifier = o.verifier THEN 2
                 WHEN v.verifier LIKE 'judge-equivalence/%' THEN 2
                 WHEN v.verifier = 'none' THEN 0 ELSE 1 END::UBIGINT << 60)
           + (coalesce(try_cast(split_part(v.verifier_version, '-', 1) AS UINTEGER), 0)::UBIGINT
              % 16777216 << 32)
           -- the version of a consensus ends with the number of traces it saw, that of a verdict
           -- against a corrected reference with -r and the number of the correction
           + coalesce(try_cast(split_part(v.verifier_version, '-', 2) AS UINTEGER)::UBIGINT,
                      (1::UBIGINT << 31)
                      + try_cast(split_part(v.verifier_version, '-r', 2) AS UINTEGER)::UBIGINT,
                      hash(v.verifier || v.verifier_version) >> 33) AS newest
    FROM verdicts v
    LEFT JOIN own o ON o.trace_id = v.trace_id AND o.attempt = v.attempt
)
SELECT trace_id, attempt,
       arg_max(verdict, newest) FILTER (kind = 'rule')   AS verdict,
       arg_max(verifier, newest) FILTER (kind = 'rule')  AS verified_by,
       arg_max(extracted, newest) FILTER (kind = 'rule') AS extracted,
       arg_max(detail, newest) FILTER (kind = 'rule')    AS verdict_detail,
       arg_max(verdict, newest)
           FILTER (kind = 'judge' AND verifier NOT LIKE 'judge-coherence/%') AS judge_verdict,
       arg_max(verdict, newest)
           FILTER (kind = 'judge' AND verifier LIKE 'judge-coherence/%') AS coherence_verdict,
       arg_max(verdict, newest) FILTER (kind = 'consensus') AS consensus_verdict
FROM ordered GROUP BY trace_id, attempt;

-- The newest measurement of each trace.
CREATE OR REPLACE VIEW last_influences AS
SELECT trace_id, attempt, arg_max(influence, created_at) AS influence
FROM influences WHERE trace_id IS NOT NULL GROUP BY trace_id, attempt;

-- `annotated` (see curate/warehouse/sql.py) is this view plus the columns that macros derive from
-- it. Each group of signals is joined separately: collecting them by GROUP BY first costs several
-- times as much. `about`: signals of a doubled id in its other datasets do not multiply its row.
CREATE OR REPLACE VIEW joined AS
SELECT t.* EXCLUDE (about) REPLACE (t.labels::JSON AS labels),
       p.question, p.source, p.domain, p.reference, p.solution, p.difficulty, p.split,
       p.target_language, p.verifier,
       v.verdict, v.verified_by, v.extracted, v.verdict_detail, v.judge_verdict,
       v.coherence_verdict, v.consensus_verdict,
       s.* EXCLUDE (trace_id, attempt, about), r.* EXCLUDE (trace_id, attempt, about),
       l.* EXCLUDE (trace_id, attempt, about), b.* EXCLUDE (trace_id, attempt, about), i.influence
FROM last_traces t
LEFT JOIN problems p ON p.problem_id = t.problem_id
LEFT JOIN last_verdicts v ON v.trace_id = t.trace_id AND v.attempt = t.attempt
LEFT JOIN signals_shape s ON s.trace_id = t.trace_id AND s.attempt = t.attempt
     AND (t.about IS NULL OR s.about = t.about)
LEFT JOIN signals_repetition r ON r.trace_id = t.trace_id AND r.attempt = t.attempt
     AND (t.about IS NULL OR r.about = t.about)
LEFT JOIN signals_language l ON l.trace_id = t.trace_id AND l.attempt = t.attempt
     AND (t.about IS NULL OR l.about = t.about)
LEFT JOIN signals_behaviour b ON b.trace_id = t.trace_id AND b.attempt = t.attempt
     AND (t.about IS NULL OR b.about = t.about)
LEFT JOIN last_influences i ON i.trace_id = t.trace_id AND i.attempt = t.attempt;
