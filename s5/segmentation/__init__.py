"""Semantic segmentation: network, S4P and multi-dataset training, evaluation, prediction and submission."""
