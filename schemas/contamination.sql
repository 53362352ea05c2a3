-- version: 1
-- Problems that a filter found to share text with benchmarks, with the text that they share.
CREATE TABLE contamination (
    corpus         VARCHAR NOT NULL, -- name of the corpus
    corpus_version VARCHAR NOT NULL, -- version of the corpus that the filter made
    problem_id     VARCHAR NOT NULL, -- problems.problem_id
    benchmarks     VARCHAR,          -- the benchmark files, with commas between
    n              INTEGER,          -- words in a row that made two texts worth comparing
    question       VARCHAR,          -- the problem
    item           VARCHAR,          -- the most similar item of the benchmarks
    similarity     DOUBLE,           -- of the two: share of the words of one that the other holds, weighted by rarity
    tokens         BIGINT,           -- words (Chinese and Japanese: characters) of the longest overlap
    overlap        VARCHAR           -- those words: lower case, no punctuation
);
