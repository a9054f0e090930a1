"""Checkpoints: safe reading, loading with a report, initial weights, layouts of other projects."""
