"""Experiments that end in a table: the quickstart's report and runs on real tiles."""
