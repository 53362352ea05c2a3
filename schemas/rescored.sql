-- version: 1
-- Other rewards for stored rollouts, next to those that the run trained on (`rollouts`). Nothing
-- was sampled for them.
CREATE TABLE rescored (
    rescore      VARCHAR NOT NULL,     -- name of the scoring
    rescore_id   VARCHAR NOT NULL,     -- hash of rollouts, rewards, verifiers, references and judge
    trace_id     VARCHAR NOT NULL,     -- traces.trace_id
    run_id       VARCHAR NOT NULL,     -- the run that sampled the trace; rollouts.run_id
    policy_step  INTEGER NOT NULL,     -- optimizer steps of the policy that sampled the trace
    problem_id   VARCHAR NOT NULL,     -- problems.problem_id; the group is (run_id, policy_step,
                                       -- problem_id)
    sample_index INTEGER,              -- within the group
    verdict      VARCHAR,              -- correct, wrong, unverifiable: what the rewards were
                                       -- computed from
    reward       DOUBLE,               -- weighted sum of the components; null if the problem is
                                       -- unverifiable
    components   MAP(VARCHAR, DOUBLE), -- name of the component to its value before weighting
    advantage    DOUBLE                -- group-relative advantage that the run would have trained
                                       -- on
);
