"""Prediction of image files, whole or by windows: sources, plan, threads and writers."""
