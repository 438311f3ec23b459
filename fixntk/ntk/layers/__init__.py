"""Layers of neural networks, each described once: as a map of the covariances of infinite width, and of finite width.

A layer is a small pytree. Called with the :class:`~fixntk.ntk.covariances.Covariances` of its inputs it gives those of
its outputs; networks of layers are passed to :func:`fixntk.network_kernel`. ``init(key, shape, width)`` and
``apply(params, x)`` are the network of finite width.

See docs/mathematics.md, M13.
"""

from fixntk.ntk.layers.attention import SelfAttention
from fixntk.ntk.layers.branches import Concatenate, Product, Residual, Serial, Sum, mlp
from fixntk.ntk.layers.elementwise import Activate, Dropout, LayerNorm
from fixntk.ntk.layers.graphs import Aggregate, MaskedAveragePool
from fixntk.ntk.layers.layer import Layer
from fixntk.ntk.layers.pooling import (
    AveragePool,
    DotGeneral,
    Flatten,
    GlobalAveragePool,
    GlobalSumPool,
    Index,
    Resize,
    SumPool,
)
from fixntk.ntk.layers.weights import Conv, ConvLocal, ConvTranspose, Dense

__all__ = [
    "Activate",
    "Aggregate",
    "AveragePool",
    "Concatenate",
    "Conv",
    "ConvLocal",
    "ConvTranspose",
    "Dense",
    "DotGeneral",
    "Dropout",
    "Flatten",
    "GlobalAveragePool",
    "GlobalSumPool",
    "Index",
    "Layer",
    "LayerNorm",
    "MaskedAveragePool",
    "Product",
    "Residual",
    "Resize",
    "SelfAttention",
    "Serial",
    "Sum",
    "SumPool",
    "mlp",
]
