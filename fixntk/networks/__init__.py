"""Gated and ReLU networks, their conversion from convex weights and into each other, and files of them."""

from fixntk.networks.export import from_dict, load_network, save_network, to_dict, to_equinox, to_flax
from fixntk.networks.models import GatedReLUNetwork, Parameters, ReLUNetwork, from_group_weights, from_signed_cones

__all__ = [
    "GatedReLUNetwork",
    "Parameters",
    "ReLUNetwork",
    "from_dict",
    "from_group_weights",
    "from_signed_cones",
    "load_network",
    "save_network",
    "to_dict",
    "to_equinox",
    "to_flax",
]
