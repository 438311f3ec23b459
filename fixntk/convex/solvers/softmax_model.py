"""The softmax's quadratic model as a program of the squared loss with a single output.

The Hessian of a row's loss is a matrix, diag(p) − ppᵀ for predicted shares p, and not a multiple of I as for the other
losses. With A = diag(√p)(I − 1pᵀ) it is AᵀA. So each row of X, with c outputs, stands for c rows with one output: row k
holds the d·c products of the features with the entries A_kj, and the group weights W_p, (d, c), are read as one vector
of d·c numbers, whose length is the Frobenius norm of W_p.

See docs/mathematics.md, M8.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax import Array
from jaxtyping import Float

from fixntk._numerics import einsum
from fixntk.convex.losses import LOSSES
from fixntk.convex.program import ConvexProgram, replace_fields


def softmax_model(
    program: ConvexProgram, outputs: Float[Array, "n c"], residuals: Float[Array, "n c"], shares: Float[Array, "n c"]
) -> ConvexProgram:
    """The program of the squared loss that has the softmax's gradient at the outputs, and these shares' Hessian.

    Parameters
    ----------
    program
        Of the softmax loss.
    outputs, residuals
        F with the intercept, and minus the gradient of each row's loss, without its weight.
    shares
        q > 0, the predicted shares p or others in their place: with s = Σ_k q_k the Hessian is diag(q) − qqᵀ/s.
    """
    num_rows, num_classes = outputs.shape
    weights = jnp.ones(num_rows, outputs.dtype) if program.sample_weight is None else program.sample_weight
    roots = jnp.sqrt(weights[:, None] * shares)
    normalised = shares / jnp.sum(shares, axis=1, keepdims=True)
    centre = jnp.eye(num_classes, dtype=shares.dtype)[None, :, :] - normalised[:, None, :]
    factors = roots[:, :, None] * centre
    # Aᵀ takes R/√q to R itself, because residuals of the softmax sum to zero over the classes.
    aims = einsum("nkj,nj->nk", factors, outputs) + jnp.sqrt(weights)[:, None] * residuals / jnp.sqrt(shares)
    return replace_fields(
        program,
        x=einsum("nkj,nd->nkdj", factors, program.x).reshape(num_rows * num_classes, -1),
        y=aims.reshape(-1),
        masks=jnp.repeat(program.masks, num_classes, axis=0),
        sample_weight=None,
        column=None if program.column is None else _intercept_basis(factors),
        loss=LOSSES["squared"],
    )


def _intercept_basis(factors: Float[Array, "n k j"]) -> Float[Array, "rows q"]:
    """An orthonormal basis of what intercepts add to the outputs of the c·n rows.

    An intercept that is the same for every class adds nothing, so that the first class needs none.
    """
    num_rows, num_classes, _ = factors.shape
    return jnp.linalg.qr(factors[:, :, 1:].reshape(num_rows * num_classes, -1))[0]
