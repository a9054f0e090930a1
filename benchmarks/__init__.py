"""Measurements of S5 against the plain way of doing the same; see README.md."""
