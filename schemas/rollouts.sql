-- version: 1
-- Reward of a trace in RL, its components, and the advantage within its group.
CREATE TABLE rollouts (
    trace_id     VARCHAR NOT NULL,     -- traces.trace_id
    run_id       VARCHAR NOT NULL,     -- the training run
    policy_step  INTEGER NOT NULL,     -- optimizer steps of the policy that sampled the trace
    problem_id   VARCHAR NOT NULL,     -- problems.problem_id; the group is (run_id, policy_step,
                                       -- problem_id)
    sample_index INTEGER,              -- within the group
    reward       DOUBLE,               -- weighted sum of the components; null if the problem is
                                       -- unverifiable
    components   MAP(VARCHAR, DOUBLE), -- name of the component to its value before weighting
    advantage    DOUBLE                -- group-relative advantage (DeepSeekMath, section 4.1.2)
);
