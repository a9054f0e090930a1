"""Prediction of image files, large ones too, by one process or several."""
