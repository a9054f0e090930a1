"""Training: configuration, launching, optimisation, hooks and logging, the same for all trees."""
