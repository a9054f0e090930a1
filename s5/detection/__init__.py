"""Oriented detection: network, training, evaluation, prediction and submission."""
