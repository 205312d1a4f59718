"""The two matrices that a run is held to: faults it survives or ends from with one clear line, and bad input it refuses.

A test says which rows it proves with `@pytest.mark.covers("row", ...)`; `make test-faults` runs those tests and prints every row with
the number that passed. A row that nothing covers is printed as such.
"""

FAULTS = (
    "rank killed in backward", "rank stopped in a collective", "exception in a reward on one rank", "rank-dependent batch shapes",
    "SIGTERM to one rank", "SIGUSR1 from the cluster", "second SIGTERM during the save", "walltime budget", "SIGKILL at a checkpoint stage",
    "disk full once", "disk full three times", "bit flip in a checkpoint", "truncated checkpoint", "zero bytes in a checkpoint",
    "missing or extra file in a checkpoint", "junk in latest", "all checkpoints invalid", "stale tmp directories", "async writer dies",
    "another world size", "another data set", "NaN loss on one rank", "NaN gradient with finite loss", "non-finite engine log-probs",
    "engine refuses to start", "engine hangs", "engine dies mid-batch", "engine answers 5xx", "engine returns fewer completions",
    "old weight version served", "rollout 100 times longer", "reward hangs", "reward eats memory", "reward segfaults",
    "reward floods stdout", "all rewards equal", "duals non-finite", "tracker down", "port in use", "3 restarts without progress",
    "two jobs on one run directory", "Ctrl-C once", "Ctrl-C twice", "killed before the first checkpoint", "generation ahead cut",
    "node lost",
)  # fmt: skip

BAD_INPUT = (
    "unknown key or flag", "override without '='", "override of the wrong type", "file missing", "file empty", "file is a directory",
    "YAML duplicates", "YAML tabs", "YAML python tags", "negative or zero rates", "budget below 2 rollouts a prompt of a round",
    "budget above rounds times capacity", "capacity above prompts times largest group", "sizes that do not divide",
    "one rollout a group", "prompt and response longer than the model", "conflicting ZeRO options", "GPU asked where there is none",
    "secret-looking literals", "run names with / or ..", "existing run without --resume", "missing columns", "prompts of the wrong type",
    "empty set", "null answers", "prompt too long", "broken JSONL line", "no chat template", "unknown reward",
    "reward with the wrong signature", "reward of the wrong length", "reward NaN", "reward outside [0,1]",
    "checkpoint path that is something else", "architecture or tokenizer mismatch", "pickle given to a converter", "non-empty output",
    "symlinks or .. in an index", "Slurm template variables missing", "versions outside the tested range", "unknown fault point",
)  # fmt: skip

ROWS = {"faults": FAULTS, "bad input": BAD_INPUT}
