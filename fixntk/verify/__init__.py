"""``fixntk verify``: the claims of docs/mathematics.md, checked numerically."""
