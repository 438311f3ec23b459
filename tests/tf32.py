"""TF32, the default precision of a GPU's products, on a CPU: products that do not ask for more show in the numbers."""

from contextlib import contextmanager

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import primitives
from jax.interpreters import mlir

# Where JAX keeps how primitives are compiled: there is no public way to the rule that another one replaces.
from jax._src.interpreters.mlir import _platform_specific_lowerings as _rules  # isort: skip

# TF32 has the exponents of float32, and this number of bits of a mantissa.
_EXPONENT_BITS, _MANTISSA_BITS = 8, 10
_FULL = (lax.Precision.HIGHEST, lax.Precision.HIGHEST)


@contextmanager
def emulated_tf32():
    """Products of float32 arrays, compiled for a CPU inside the block, round to TF32 unless in highest precision."""
    products = (primitives.dot_general_p, primitives.conv_general_dilated_p)
    kept = {product: _rules["cpu"][product] for product in products}
    # Programs that were compiled before, or inside, have the other precision.
    jax.clear_caches()
    for product, rule in kept.items():
        mlir.register_lowering(product, _rule_in_tf32(product, getattr(rule, "rule", rule)), platform="cpu")
    try:
        yield
    finally:
        _rules["cpu"].update(kept)
        jax.clear_caches()


def _rule_in_tf32(product, full):
    def rounded(a, b, **params):
        a, b = (
            lax.reduce_precision(operand, _EXPONENT_BITS, _MANTISSA_BITS) if operand.dtype == jnp.float32 else operand
            for operand in (a, b)
        )
        return product.bind(a, b, **params | {"precision": _FULL})

    def rule(context, a, b, **params):
        if params["precision"] == _FULL:
            return full(context, a, b, **params)
        return mlir.lower_fun(rounded, multiple_results=False)(context, a, b, **params)

    return rule
