-- version: 1
-- Problems that a filter found to share text with benchmarks, with the text that they share.
CREATE TABLE contamination (
    corpus         VARCHAR NOT NULL, -- name of the corpus
    corpus_version VARCHAR NOT NULL, -- version of the corpus
    problem_id     VARCHAR NOT NULL, -- problems.problem_id
    benchmarks     VARCHAR,          -- benchmark files, separated by commas
    n              INTEGER,          -- length of the word n-grams that two texts had to share to be
                                     -- compared
    question       VARCHAR,          -- the problem
    item           VARCHAR,          -- the most similar item of the benchmarks
    similarity     DOUBLE,           -- share of the words of one text that the other contains,
                                     -- weighted by rarity
    tokens         BIGINT,           -- words (Chinese and Japanese: characters) of the longest
                                     -- overlap
    overlap        VARCHAR           -- these words: lower case, no punctuation
);
