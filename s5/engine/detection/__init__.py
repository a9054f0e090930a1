"""Trained detectors: what they find in images, written, scored and submitted."""
