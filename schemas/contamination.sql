-- version: 1
-- Problems that a filter found to share text with benchmarks, with the text that they share.
CREATE TABLE contamination (
    corpus         VARCHAR NOT NULL, -- name of the corpus
    corpus_version VARCHAR NOT NULL, -- version of the corpus that the filter made
    problem_id     VARCHAR NOT NULL, -- problems.problem_id
    benchmarks     VARCHAR,          -- the benchmark files, with commas between
    n              INTEGER,          -- words in a row that counted as an overlap
    tokens         BIGINT,           -- words (Chinese and Japanese: characters) of the longest overlap
    overlap        VARCHAR           -- those words: lower case, no punctuation
);
