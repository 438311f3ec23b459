"""Runs of experiments: configs in, rows, figures and a report out."""
