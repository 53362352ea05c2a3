-- Problems that filters found in benchmarks, next to the item that they resemble.
SELECT corpus, corpus_version, problem_id, similarity, question, item, tokens, overlap, benchmarks
FROM contamination ORDER BY corpus, corpus_version, similarity DESC, problem_id;
