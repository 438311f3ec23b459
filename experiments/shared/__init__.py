"""What several experiments share: settings, statistics, colours and baselines."""
