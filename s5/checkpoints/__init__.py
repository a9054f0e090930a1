"""Checkpoints: safe reading, loading with a report, initial weights, and layouts of other projects."""
