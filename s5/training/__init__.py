"""Training shared by all trees: configuration, experiment, optimisation, hooks and logging."""
