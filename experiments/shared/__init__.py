"""Settings, statistics, arrays, figures and baselines that several experiments share."""
