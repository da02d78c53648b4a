from __future__ import annotations

import subprocess
import sys

import psutil

from sft_tune.run.owner import is_dead, owner_name


def test_this_process_is_alive() -> None:
    assert not is_dead(owner_name())


def test_a_process_that_ended_is_dead_reaped_or_not() -> None:
    script = "from sft_tune.run.owner import owner_name; print(owner_name())"
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        name = process.stdout.read().strip()
    while psutil.Process(process.pid).status() != psutil.STATUS_ZOMBIE:
        pass  # its output is closed: it is on its way out
    assert is_dead(name)
    process.wait()
    assert is_dead(name)


def test_a_later_process_of_the_same_number_is_not_the_owner() -> None:
    host, pid, started = owner_name().rsplit(":", 2)
    assert is_dead(f"{host}:{pid}:{float(started) - 1000:.2f}")


def test_nothing_is_known_of_other_machines() -> None:
    assert not is_dead("elsewhere:1:1.00")
