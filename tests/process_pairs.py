"""Two processes of jax.distributed on the loopback address."""

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]


def run_pair(script, *args, own=((), ()), timeout=120, x64=True):
    """Both processes of ``script ADDRESS 2 INDEX *args *own[INDEX]`` when they have ended."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": str(ROOT), "JAX_ENABLE_X64": str(int(x64))}
    environment |= {"XLA_FLAGS": "--xla_backend_optimization_level=0"}
    commands = [[sys.executable, script, address, "2", str(index), *map(str, (*args, *own[index]))] for index in (0, 1)]
    started = [
        subprocess.Popen(
            each, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, bufsize=-1
        )
        for each in commands
    ]
    return _wait(started, time.monotonic() + timeout)


def _wait(started, deadline):
    ended = []
    try:
        for process in started:
            out, err = process.communicate(timeout=max(deadline - time.monotonic(), 0.1))
            ended.append(subprocess.CompletedProcess(process.args, process.returncode, out, err))
    finally:
        for process in started:
            # SIGTERM would not end them: JAX takes it for the notice of a preemption.
            process.kill()
    return ended
