"""The command line of the benchmarks: prints what this machine is, then a table for each."""

from __future__ import annotations

import argparse
import os
import platform
from importlib.metadata import version
from pathlib import Path

import psutil

from tests.benchmarks import BENCHMARKS, load

LIBRARIES = ("torch", "transformers", "optuna", "sqlalchemy", "sft_tune")


def main() -> None:
    names = "\n".join(f"  {name}  {what}" for name, what in BENCHMARKS.items())
    parser = argparse.ArgumentParser(
        prog="python -m tests.benchmarks",
        description="Measure. Without a name, everything.",
        epilog=f"benchmarks:\n{names}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="which to run")
    parser.add_argument("--short", action="store_true", help="in seconds: to see that it runs")
    given = parser.parse_args()
    unknown = [name for name in given.names if name not in BENCHMARKS]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    print(machine())
    met = True
    for name in given.names or BENCHMARKS:
        table = load(name)(given.short)
        print(f"\n== {name}\n{table.text()}", flush=True)
        met = met and table.met is not False
    # A short form measures nothing, so it misses nothing.
    raise SystemExit(0 if met or given.short else 1)


def machine() -> str:
    """Return hardware and versions, in two lines."""
    versions = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    memory = psutil.virtual_memory().total / 2**30
    return (
        f"{_processor()}, {len(os.sched_getaffinity(0))} cores, {memory:.0f} GiB, "
        f"load before {os.getloadavg()[0]:.2f}\n"
        f"Python {platform.python_version()}, {versions}"
    )


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text("utf8").splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
