-- version: 1
-- What each rule of a filter did, by source and difficulty. A selection step is a row too.
CREATE TABLE funnel (
    corpus         VARCHAR NOT NULL, -- name of the corpus
    corpus_version VARCHAR NOT NULL, -- version of the corpus that the filter made
    rules          VARCHAR,          -- name of the rule set
    position       INTEGER NOT NULL, -- order in which rules are asked
    rule           VARCHAR NOT NULL, -- name of the rule or selection step
    predicate      VARCHAR,          -- its SQL
    source         VARCHAR,          -- source of the problem
    difficulty     VARCHAR,          -- band of the problem's difficulty
    traces         BIGINT,           -- traces the filter looked at
    drops_alone    BIGINT,           -- traces this rule would drop if it were the only one
    drops_first    BIGINT,           -- traces that fell to this rule first
    remaining      BIGINT            -- traces left after this rule
);
