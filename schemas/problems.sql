-- version: 1
-- Questions, with everything that is needed to judge an answer.
CREATE TABLE problems (
    problem_id      VARCHAR NOT NULL, -- hash of the content: question, reference, verifier,
                                      -- choices, tests, metadata
    source          VARCHAR,          -- name of the source and its dataset
    domain          VARCHAR,          -- math, code, logic, stem, choice, general, ...
    question        VARCHAR NOT NULL, -- text of the question, without any template
    reference       VARCHAR,          -- correct answer, as the verifier reads it
    solution        VARCHAR,          -- a worked solution that came with the problem
    choices         VARCHAR[],        -- texts of the choices, in order A, B, C, ...
    tests           VARCHAR,          -- JSON: tests of a code problem
    verifier        VARCHAR,          -- name of the verifier that judges answers
    target_language VARCHAR,          -- ISO 639-1 code of the language to reason in; null: that of
                                      -- the question
    difficulty      DOUBLE,           -- the source's own, or 1 - pass rate of a named model; 0
                                      -- easy, 1 hard
    split           VARCHAR,          -- train or held-out: decided by the hash of the question,
                                      -- never both
    metadata        VARCHAR,          -- JSON: input of a procedural verifier besides the answer
    correction      INTEGER           -- number of the correction that the reference is from
                                      -- (`curate correct`); null: as loaded
);
