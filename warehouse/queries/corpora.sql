-- Every version of every corpus: its size, and what it is made of.
SELECT corpus, version, rows, problems, sources, round(quality, 3) AS quality, round(difficulty, 3) AS difficulty,
       round(characters) AS characters, sealed_at
FROM corpus_versions ORDER BY sealed_at, corpus, version;
