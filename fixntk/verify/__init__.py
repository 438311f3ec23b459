"""The claims of docs/mathematics.md, checked numerically: ``fixntk verify``.

``command`` is what the command runs, ``kernels`` and ``programs`` are the claims, ``check`` the row that each gives.
"""
