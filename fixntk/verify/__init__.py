"""The claims of docs/mathematics.md, checked numerically: ``fixntk verify``.

``command`` runs the checks, ``kernels`` and ``programs`` check the claims, ``check`` has the row that each check gives.
"""
