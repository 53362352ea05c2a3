-- What each corpus was made from, down to the problems.
SELECT a.ref AS corpus, a.depth, a.ancestor, m.rows, m.sealed_at
FROM ancestry a LEFT JOIN manifests m ON m.ref = a.ancestor
WHERE a.ref LIKE 'corpora/%' ORDER BY a.ref, a.depth, a.ancestor;
