"""The command ``fixntk plan``: what ``solve`` would cost for a program of some shapes, on this machine."""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

from fixntk._tiling import free_on_device
from fixntk.convex.losses import LOSSES
from fixntk.convex.rates import measure_rates
from fixntk.convex.solve_plan import SolvePlan, solve_plan
from fixntk.convex.work import program_of_shapes

_DESCRIPTION = """\
Which method solve takes for N rows, D features and P gates, and for every method memory, operations and an estimated
time. The time is that of a typical solve at a tenth of λ_max, without compiling, from rates that are measured on this
machine in about a second.
"""


def add_parser(commands: Any) -> argparse.ArgumentParser:
    """Add ``plan`` to the subparsers."""
    parser = commands.add_parser("plan", help="what solving a convex program costs", description=_DESCRIPTION)
    parser.add_argument("rows", metavar="N", type=int, help="number of rows")
    parser.add_argument("features", metavar="D", type=int, help="number of features")
    parser.add_argument("gates", metavar="P", type=int, help="number of gates")
    parser.add_argument("--outputs", metavar="C", type=int, default=1, help="number of outputs (1)")
    parser.add_argument("--devices", metavar="K", type=int, default=1, help="devices that share the rows (1)")
    parser.add_argument("--loss", metavar="NAME", default="squared", help=f"{', '.join(LOSSES)} (squared)")
    parser.add_argument("--dtype", default="float32", help="float32 or float64 (float32)")
    parser.add_argument(
        "--memory", metavar="GB", type=float, help="memory of a device, in 10⁹ bytes (what is free here)"
    )
    parser.add_argument("--json", dest="as_json", action="store_true", help="print it as JSON")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Print the plan.

    Raises
    ------
    ValueError
        If an argument is out of its range.
    """
    plan = _plan(arguments)
    if not arguments.as_json:
        print(plan)
        return 0
    fields = plan._asdict() | {"methods": [each._asdict() for each in plan.methods]}
    print(json.dumps(fields, indent=1, ensure_ascii=False))
    return 0


def _plan(arguments: argparse.Namespace) -> SolvePlan:
    memory = None if arguments.memory is None else arguments.memory * 1e9
    if memory is not None and not 0 < memory < math.inf:
        raise ValueError(f"--memory must be a positive number of GB, got {arguments.memory}")
    shapes = arguments.rows, arguments.features, arguments.gates
    options = {name: getattr(arguments, name) for name in ("outputs", "loss", "dtype", "devices")}
    # The arguments are checked before the machine is measured.
    solve_plan(*shapes, **options)
    program = program_of_shapes(*shapes, arguments.outputs, arguments.loss, arguments.dtype)
    rates = measure_rates(program)
    return solve_plan(*shapes, **options, memory=free_on_device().num_bytes if memory is None else memory, rates=rates)
