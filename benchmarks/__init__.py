"""Measurements of S5 against plain reference implementations; see README.md."""
