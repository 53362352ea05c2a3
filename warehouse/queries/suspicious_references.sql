-- Problems whose reference is probably wrong: samples of several models and prompts agree with each other, against it.
-- `posterior` is the chance that `proposed` is right and the reference is not. Read what you accept, and give it to
-- `curate correct` as CSV: curate sql --file suspicious_references -f csv > corrections.csv
--
-- `proposed` is the commonest answer that was not judged correct. Samples of one source (a model with a prompt) are not
-- independent, so they are draws of one unknown distribution of answers per problem: Dirichlet, with weight `a` for the
-- right answer and `w` for one particular wrong one, both from the source's own rates. If k samples of a source give the
-- proposed answer and c the reference, its evidence is a ratio of Dirichlet-multinomials, in which all other answers cancel:
--     log BF = [lgamma(a + k) - lgamma(w + k)] - [lgamma(a + c) - lgamma(w + c)]
-- a = s * accuracy, w = s * (1 - accuracy) * (chance that two wrong samples of a problem agree), and s, the strength, from how
-- much more than by chance two samples of a problem agree in being right (method of moments of a beta-binomial). Evidence grows
-- with log k within a source, and adds up over sources. Agreement in a source that is seldom right, or whose wrong answers
-- coincide, says little. The prior of a wrong reference is 0.05, one in twenty (ours).
WITH answers AS (
    SELECT problem_id, coalesce(model, '') || '/' || coalesce(template, '') AS source, verdict = 'correct' AS agrees,
           -- spellings of one answer, as far as SQL can tell; the verifier decides once a correction is made
           lower(regexp_replace(extracted, '\s+|\\[,;! ]|\$', '', 'g')) AS answer, extracted
    FROM annotated WHERE extracted IS NOT NULL AND verdict IN ('correct', 'wrong')
), counts AS (
    SELECT problem_id, source, agrees, CASE WHEN agrees THEN NULL ELSE answer END AS answer, count(*) AS n,
           mode(extracted) AS spelling
    FROM answers GROUP BY problem_id, source, agrees, 4
), paired AS (
    SELECT *, n * (sum(n) OVER (PARTITION BY problem_id, source, agrees) - 1) AS pairs FROM counts
), rates AS (  -- of each source: how often it is right, and how often two of its wrong answers to a problem coincide
    SELECT source, least(greatest(coalesce(sum(n) FILTER (agrees), 0) / sum(n), 0.01), 0.99) AS accuracy, -- never certain
           greatest(coalesce(sum(n * (n - 1)) FILTER (NOT agrees) / nullif(sum(pairs) FILTER (NOT agrees), 0), 0.5), 0.01)
               AS coincidence
    FROM paired GROUP BY source
), agreement AS (  -- the chance that two samples of a problem are both right
    SELECT source, sum(c * (c - 1)) / nullif(sum(n * (n - 1)), 0) AS both_right
    FROM (SELECT source, sum(n) AS n, coalesce(sum(n) FILTER (agrees), 0) AS c FROM counts GROUP BY source, problem_id)
    GROUP BY source
), strengths AS (  -- 1: a problem is solved always or never; 50: all problems are equally hard
    SELECT source, accuracy, coincidence,
           least(greatest(accuracy * (1 - accuracy) / greatest(coalesce(both_right, accuracy) - accuracy ** 2, 0.001) - 1, 1), 50)
               AS s
    FROM rates JOIN agreement USING (source)
), weights AS (
    SELECT source, s * accuracy AS a, s * (1 - accuracy) * coincidence AS w FROM strengths
), rivals AS (
    SELECT problem_id, answer, count(*) AS sources, sum(n) AS n, arg_max(spelling, n) AS spelling
    FROM counts WHERE NOT agrees GROUP BY problem_id, answer
), proposals AS (
    SELECT problem_id, answer, spelling AS proposed FROM rivals
    QUALIFY row_number() OVER (PARTITION BY problem_id ORDER BY sources DESC, n DESC, answer) = 1
), evidence AS (
    SELECT c.problem_id, c.source, sum(n) AS samples, coalesce(sum(n) FILTER (agrees), 0) AS c,
           coalesce(sum(n) FILTER (c.answer = p.answer), 0) AS k
    FROM counts c JOIN proposals p ON p.problem_id = c.problem_id GROUP BY c.problem_id, c.source
), totals AS (
    SELECT problem_id, sum(samples) AS samples, sum(c) AS agree_with_reference, sum(k) AS agree_with_proposed,
           count(*) AS sources, count(*) FILTER (k > c) AS dissenting_sources,
           sum(lgamma(a + k) - lgamma(w + k) - lgamma(a + c) + lgamma(w + c)) AS log_bayes_factor
    FROM evidence JOIN weights USING (source) GROUP BY problem_id
)
SELECT t.problem_id, round(1 / (1 + exp(-least(greatest(log_bayes_factor + ln(0.05 / 0.95), -50), 50))), 4) AS posterior,
       p.reference, r.proposed, samples, agree_with_reference, agree_with_proposed, sources, dissenting_sources, p.question
FROM totals t JOIN proposals r ON r.problem_id = t.problem_id JOIN problems p ON p.problem_id = t.problem_id
WHERE trim(coalesce(p.reference, '')) <> '' AND posterior >= 0.5 ORDER BY log_bayes_factor DESC, t.problem_id;
