"""Semi-supervised methods."""
