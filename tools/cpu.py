"""The instruction sets that Caffe was compiled for, and whether this CPU has them.

    .venv/bin/python tools/cpu.py         # prints what is wrong, or nothing; .caffe/env.sh asks it for the stock binary

A build for the machine's own CPU ends with "Illegal instruction" on one that lacks something, as another node of a cluster
may. So `make env` records what the compiler was allowed to use, and the commands look before Caffe is imported.
"""

import re
import subprocess
import sys
from pathlib import Path

from data_prep.files import read_record

RECORD = Path(__file__).resolve().parent.parent / ".caffe/caffe/caffe.json"
# Instruction sets as the compiler's macros have them, and as Linux calls them, without underscores.
MACRO = re.compile(r"#define __(S?SSE\d\w*|AVX\w*|FMA4?|BMI2?|F16C|MOVBE|POPCNT|LZCNT|ADX|GFNI|VAES|VPCLMULQDQ|XOP|TBM)__ 1")
ON_LINUX = {"bmi": "bmi1", "lzcnt": "abm", "sse3": "pni"}


def allowed(compiler, flags):
    """The instruction sets that `compiler` may use with these flags, sorted; none for another kind of CPU than x86."""
    said = subprocess.run([compiler, *flags, "-dM", "-E", "-x", "c", "/dev/null"], text=True, capture_output=True)
    if said.returncode:
        raise ValueError(said.stderr.strip())
    found = {name.lower().replace("_", "") for name in MACRO.findall(said.stdout) if not name.endswith("_MATH")}
    return sorted(ON_LINUX.get(name, name) for name in found)


def lacking(needed, cpuinfo=Path("/proc/cpuinfo")):
    """Those of the instruction sets `needed` that this CPU has not; none where nothing is known of it."""
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    flags = next((line for line in lines if line.startswith("flags")), "").replace("_", "").split()
    return sorted(set(needed) - set(flags)) if flags else []


def problem(record=RECORD, cpuinfo=Path("/proc/cpuinfo")):
    """In words, that the Caffe that was built here is for another CPU; or None."""
    if missing := lacking(read_record(record).get("instructions", []), cpuinfo):
        return (
            f"Caffe was compiled for a CPU with {', '.join(missing)}, which this one has not. `make env` builds it for this "
            "one; for all the machines that share this folder: make env MARCH=x86-64-v3 (CPUs since 2013), or MARCH=x86-64"
        )
    return None


def refuse_another_cpu():
    """Leave with a message where the Caffe that was built here is for another CPU; it must not be imported yet."""
    if said := problem():
        sys.exit(said)


if __name__ == "__main__":
    if said := problem():
        print(said, file=sys.stderr)
