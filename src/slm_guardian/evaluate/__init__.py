"""Evaluation: data sets, metrics with intervals, the floor, and the run that writes the report."""
