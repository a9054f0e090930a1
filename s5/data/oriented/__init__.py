"""Data of oriented detection: annotations, training and validation sources, scores, merging, submissions."""
