"""Prediction shared by segmentation and detection: sources, plan, threads and writers."""
