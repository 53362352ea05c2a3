-- Every version of every corpus, with its size and composition.
SELECT corpus, version, rows, problems, sources, round(quality, 3) AS quality,
       round(difficulty, 3) AS difficulty,
       round(characters) AS characters, sealed_at
FROM corpus_versions ORDER BY sealed_at, corpus, version;
