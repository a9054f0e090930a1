"""Prediction shared by segmentation and detection: model description, predictor, sources, plan, threads."""
