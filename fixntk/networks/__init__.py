"""Gated and ReLU networks, networks from convex weights, and files of networks."""

from fixntk.networks.convert import from_group_weights, from_signed_cones
from fixntk.networks.export import from_dict, load_network, save_network, to_dict, to_equinox, to_flax
from fixntk.networks.models import GatedReLUNetwork, ReLUNetwork
from fixntk.networks.neurons import Parameters, outputs, weight_decay

__all__ = [
    "GatedReLUNetwork",
    "Parameters",
    "ReLUNetwork",
    "from_dict",
    "from_group_weights",
    "from_signed_cones",
    "load_network",
    "outputs",
    "save_network",
    "to_dict",
    "to_equinox",
    "to_flax",
    "weight_decay",
]
