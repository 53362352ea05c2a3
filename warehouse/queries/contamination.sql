-- Problems that filters found in benchmarks, with the text that they share.
SELECT corpus, corpus_version, problem_id, n, tokens, overlap, benchmarks
FROM contamination ORDER BY corpus, corpus_version, tokens DESC, problem_id;
