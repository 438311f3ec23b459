"""Solve a program whose rows several processes read, each its own: ADDRESS COUNT INDEX FOLDER-OF-ROWS FOLDER-OF-RESULT.

ADDRESS is a host and a free port of process 0, the same for all, such as 127.0.0.1:4321; INDEX is 0, …, COUNT − 1.
"""

import json
import sys
from pathlib import Path

import jax
import numpy as np

import fixntk as fx

address, count, index = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
own, shared = Path(sys.argv[4]), Path(sys.argv[5])

# Before anything is computed. A process that is silent for this number of seconds ends the others.
jax.distributed.initialize(address, count, index, heartbeat_timeout_seconds=60, shutdown_timeout_seconds=60)

# Each process reads its own rows, here all those of its files; x[first:last] of a larger file does as well.
x, y = (np.load(own / f"{name}.npy", mmap_mode="r") for name in ("x", "y"))
# The same key gives the same gates to all.
gates = fx.sample_gates(jax.random.key(0), 40, x.shape[1], dtype=x.dtype)
rows = fx.distribute_rows(x, y, gates)

program = fx.ConvexProgram(rows.x, rows.y, rows.masks, reg=1.0, sample_weight=rows.sample_weight)
program = program.with_reg(0.1 * program.max_reg())
solution = fx.solve(program, method="fista", checkpoint=shared / "checkpoint")

# All processes have the same solution, which each can read by itself.
if jax.process_index() == 0:
    np.save(shared / "weights.npy", solution.weights)
    report = {name: float(getattr(solution, name)) for name in ("primal", "dual", "relative_gap", "iterations")}
    report |= {"primal_by_iteration": solution.history.primal.tolist(), "message": solution.message}
    (shared / "report.json").write_text(json.dumps(report, indent=2))
