"""Compiled programs of the command on disk, so that the next process does not compile them again."""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from pathlib import Path

import jax
import jaxlib
import platformdirs

# Environment variable with a folder for compiled programs, or "off".
_CACHE_VARIABLE = "FIXNTK_COMPILATION_CACHE"
# This version reads some programs back wrongly on a CPU: their loops end at once.
_BROKEN_VERSION = "0.6.0"
# Programs that take longer than this to compile are kept, those of the solvers among them.
_LEAST_SECONDS_KEPT = 0.05


def cache_folder() -> Path | None:
    """Where compiled programs are kept, by this machine's processor; None where the user wants none or chose JAX's own.

    Also None where jaxlib reads programs back wrongly. Programs that were compiled for one processor may crash on
    another that shares the folder.
    """
    wanted = os.environ.get(_CACHE_VARIABLE, "")
    if wanted.lower() in ("off", "0", "no", "false") or "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return None
    if jaxlib.__version__ == _BROKEN_VERSION:
        return None
    if wanted:
        return Path(wanted)
    try:
        processor = Path("/proc/cpuinfo").read_text(encoding="utf-8").partition("\n\n")[0]
        features = "".join(
            line for line in processor.splitlines() if line.startswith(("flags", "Features", "model name"))
        )
    except OSError:
        features = platform.processor()
    return platformdirs.user_cache_path("fixntk") / "compiled" / hashlib.sha256(features.encode()).hexdigest()[:12]


def keep_compiled_programs() -> None:
    """Let JAX keep compiled programs on disk; the command may set what the library leaves to its users.

    A folder that cannot be written is told in a line on stderr, where JAX would warn once for each program.
    """
    if (folder := cache_folder()) is None:
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if not os.access(folder, os.W_OK):
            raise PermissionError(f"{folder} is read-only")
    except OSError as error:
        print(f"fixntk: compiled programs are not kept: {error}", file=sys.stderr)
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_persistent_cache_min_compile_time_secs", _LEAST_SECONDS_KEPT)
