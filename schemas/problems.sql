-- version: 1
-- A question with what is needed to judge an answer.
CREATE TABLE problems (
    problem_id      VARCHAR NOT NULL, -- hash of the content: question, reference, verifier, choices, tests, metadata
    source          VARCHAR,          -- where it came from: the name of the source and its dataset
    domain          VARCHAR,          -- math, code, logic, stem, choice, general, ...
    question        VARCHAR NOT NULL, -- as it is asked, without any template
    reference       VARCHAR,          -- the right answer, as the verifier reads it
    solution        VARCHAR,          -- a worked solution that came with the problem
    choices         VARCHAR[],        -- texts of the choices, in order A, B, C, ...
    tests           VARCHAR,          -- JSON: tests of a code problem
    verifier        VARCHAR,          -- name of the verifier that judges answers
    target_language VARCHAR,          -- ISO 639-1 code of the language to reason in; null: that of the question
    difficulty      DOUBLE,           -- the source's own, or 1 - pass rate of a named model; 0 easy, 1 hard
    split           VARCHAR,          -- train or held-out: decided by the hash of the question, never both
    metadata        VARCHAR           -- JSON: what a procedural verifier needs to score an answer
);
