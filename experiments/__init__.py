"""The experiments, one module each; `paper` joins them."""
