-- version: 1
-- Effect of each rule of a filter, by source and difficulty. Selection steps have rows as well.
CREATE TABLE funnel (
    corpus         VARCHAR NOT NULL, -- name of the corpus
    corpus_version VARCHAR NOT NULL, -- version of the corpus
    rules          VARCHAR,          -- name of the rule set
    position       INTEGER NOT NULL, -- order in which rules are applied
    rule           VARCHAR NOT NULL, -- name of the rule or selection step
    predicate      VARCHAR,          -- its SQL
    source         VARCHAR,          -- source of the problem
    difficulty     VARCHAR,          -- band of the problem's difficulty
    traces         BIGINT,           -- traces that the filter looked at
    drops_alone    BIGINT,           -- traces this rule would drop if it were the only one
    drops_first    BIGINT,           -- traces that failed this rule first
    remaining      BIGINT            -- traces that remain after this rule
);
