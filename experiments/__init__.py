"""One module per experiment, each a thin user of fixntk."""
