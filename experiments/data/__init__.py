"""Data sets of the experiments: real tables and planted problems."""
