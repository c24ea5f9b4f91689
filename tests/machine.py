"""Runs a command as on another machine: `python -m tests.machine [--old] [--busy] COMMAND...`.

`--old` takes away what the processor learnt in the last fifteen years: the kernels that numpy, OpenBLAS, torch, the C
library and numba choose are those of a machine without AVX and FMA, and they round differently. `--busy` burns a core
each in two processes meanwhile.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys

BUSY = 2  # processes that burn a core each


def old_processor() -> dict[str, str]:
    """Return the environment in which every library takes the plainest kernels that it has for this architecture."""
    from numpy._core import _multiarray_umath as numpy_core

    found = [name for name in numpy_core.__cpu_dispatch__ if numpy_core.__cpu_features__.get(name)]
    common = {
        "NPY_DISABLE_CPU_FEATURES": " ".join(found),
        "ATEN_CPU_CAPABILITY": "default",
        "NUMBA_CPU_NAME": "generic",
        "NUMBA_CPU_FEATURES": "",
    }
    if platform.machine() != "x86_64":
        return common | {"OPENBLAS_CORETYPE": "ARMV8"}
    return common | {
        "OPENBLAS_CORETYPE": "Prescott",
        "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
        "ONEDNN_MAX_CPU_ISA": "SSE41",
        "GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA,-AVX",
    }


def main(arguments: list[str]) -> int:
    """Run the command and return its exit status."""
    forms = [argument for argument in arguments[:2] if argument in {"--old", "--busy"}]
    environ = {**os.environ, **(old_processor() if "--old" in forms else {})}
    burn = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(burn) for _ in range(BUSY if "--busy" in forms else 0)]
    try:
        return subprocess.run(arguments[len(forms) :], env=environ, check=False).returncode
    finally:
        for process in busy:
            process.kill()
            process.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
