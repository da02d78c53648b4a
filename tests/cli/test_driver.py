"""A driver of NVIDIA's that is there and fails: trials run on the CPU, and each command says so."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.cli.conftest import PROGRAM, STUDY, program_environment

SAID = "Failed to initialize NVML: Driver/library version mismatch"


@pytest.mark.parametrize("command", ["check", "train", "worker", "start"])
def test_a_command_that_trains_says_why_it_does_so_on_the_cpu(tmp_path: Path, command: str) -> None:
    tool = tmp_path / "bin" / "nvidia-smi"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\necho '{SAID}'\nexit 18\n")
    tool.chmod(0o755)
    study = tmp_path / "tiny.yaml"
    study.write_text(STUDY.replace("devices: cpu", "devices: auto"))
    arguments = ["--idle-minutes", "0.001"] if command == "worker" else [str(study)]
    environment = program_environment(tmp_path / "cache")
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    done = subprocess.run(
        [PROGRAM, command, *arguments, "--storage", str(tmp_path / "tiny.db")],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**environment, "PATH": f"{tool.parent}{os.pathsep}{os.environ['PATH']}"},
        check=False,
    )
    told = (done.stdout + done.stderr).splitlines()
    assert done.returncode == 0, told
    assert [line for line in told if SAID in line and "mend the driver" in line] != []
