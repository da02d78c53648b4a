"""Workers that are forked from a warm process have all that a process started afresh has."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from sft_tune.run import messages, nursery
from sft_tune.run.engine import GONE, Inbox, LocalEngine, LocalWorker
from sft_tune.run.slots import Slot, warm_up, worker_environment
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.resources import ResourcesSpec
from sft_tune.spec.study import StudySpec

pytestmark = pytest.mark.skipif(not nursery.CAN_FORK, reason="workers are forked on Linux only")

PATIENCE = 120

TASK = """
import json, os, sys, threading
import numpy as np, torch
def train(folder, report):
    (folder / "seen.json").write_text(json.dumps({
        "environment": dict(os.environ), "cwd": os.getcwd(), "path": sys.path[0],
        "threads": torch.get_num_threads(), "session": os.getsid(0) == os.getpid(),
        "open": sorted(os.readlink(f"/proc/self/fd/{d}") for d in os.listdir("/proc/self/fd")
                       if os.path.exists(f"/proc/self/fd/{d}")),
        "loaded": sorted(sys.modules), "random": float(np.random.rand()),
        "poisoned": torch.cuda._is_in_bad_fork(),
        "sum": float((torch.ones(400, 400) @ torch.ones(400, 400)).sum()),
    }))
    report(1.0, {"score": SCORE})
"""


def spawned(folder: Path, threads: int = 1) -> tuple[LocalWorker, Inbox]:
    inbox: Inbox = queue.SimpleQueue()
    return LocalEngine(folder).spawn(Slot(0, None, threads), inbox), inbox


def train(worker: LocalWorker, inbox: Inbox, folder: Path, score: float) -> dict[str, object]:
    """Run the task, written anew with ``score``; return what it saw of its process."""
    (folder / "task.py").write_text(TASK.replace("SCORE", str(score)))
    config = TrialConfig.model_validate(
        {
            "task": f"python:{folder}/task.py:train",
            "data": {"source": "none"},
            "model": {"name": "none"},
            "training": {},
            "objective": {"metric": "score", "direction": "maximize"},
            "seed": 1,
        }
    )
    worker.send(messages.train(config, folder / "trial", worker.slot, ResourcesSpec()))
    while True:
        _, message = inbox.get(timeout=PATIENCE)
        if message["event"] == "evaluation":
            assert message["metrics"]["score"] == score
            worker.send(messages.verdict(True))
        elif message["event"] != "ready":
            assert message.get("reason") == "completed", message
            break
    seen: dict[str, object] = json.loads(next((folder / "trial").rglob("seen.json")).read_text())
    return seen


def study_of(model: str, **resources: str) -> StudySpec:
    return StudySpec.model_validate(
        {
            "name": "s",
            "task": "text-classification",
            "data": {"source": "texts.csv"},
            "model": {"name": model},
            "space": {"model.name": [model, "torchvision:resnet18"]},
            "resources": resources,
        }
    )


def server_of(worker: LocalWorker) -> psutil.Process:
    parent = psutil.Process(worker.pid).parent()
    assert parent is not None and "sft_tune.run.fork_server" in parent.cmdline()
    return parent


def test_a_forked_worker_has_its_own_surroundings(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, heard = spawned(tmp_path / "logs")
    one = train(first, heard, tmp_path, 0.5)
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    monkeypatch.setenv("SFT_TUNE_NEW", "later")
    second, also_heard = spawned(tmp_path / "logs", threads=2)
    two = train(second, also_heard, tmp_path, 0.75)
    try:
        assert (one["cwd"], two["cwd"]) == (str(tmp_path), str(tmp_path / "below"))
        assert two["path"] == two["cwd"]
        assert (one["threads"], two["threads"]) == (1, 2)
        assert (one["session"], two["session"]) == (True, True)
        assert one["sum"] == two["sum"] == 400**3
        assert one["random"] != two["random"]
        surroundings = two["environment"]
        assert isinstance(surroundings, dict)
        assert surroundings["SFT_TUNE_NEW"] == "later"
        assert surroundings["OMP_NUM_THREADS"] == "2"
        assert ("JE_ARROW_MALLOC_CONF" in surroundings) == ("JE_ARROW_MALLOC_CONF" in os.environ)
        # Its two pipes, its log, and nothing of its sibling's: or that one's end would never come.
        assert [p.partition(":")[0] for p in two["open"]].count("pipe") == 2  # type: ignore[attr-defined]
        server = server_of(first)
        assert server == server_of(second)
        assert server.num_threads() == 1
        maps = Path(f"/proc/{server.pid}/maps").read_text()
        assert "libtorch_cpu" in maps
        assert "libcuda.so" not in maps
    finally:
        first.close()
        second.close()


def test_a_server_that_dies_takes_no_worker_along_and_is_replaced(tmp_path: Path) -> None:
    orphan, heard = spawned(tmp_path / "logs")
    server = server_of(orphan)
    server.kill()
    server.wait(PATIENCE)
    train(orphan, heard, tmp_path, 0.25)
    other, also_heard = spawned(tmp_path / "logs")
    assert server_of(other) != server
    train(other, also_heard, tmp_path, 0.5)
    orphan.kill()
    message = heard.get(timeout=PATIENCE)[1]
    assert message["event"] == GONE
    assert "the process that it was forked from" in message["how"]
    other.close()
    assert "exited with status 0" in also_heard.get(timeout=PATIENCE)[1]["how"]


def test_a_server_that_was_warmed_up_for_the_machine_serves_the_first_worker(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_FLEET", "warm")
    before = set(psutil.Process().children())
    warm_up(study_of("builtin:convnet", engine="ray"))
    assert set(psutil.Process().children()) == before  # its workers come from elsewhere
    warm_up(study_of("builtin:convnet"))
    (early,) = set(psutil.Process().children()) - before
    worker, heard = spawned(tmp_path / "logs", threads=2)
    assert server_of(worker) == early
    assert train(worker, heard, tmp_path, 0.5)["threads"] == 2
    worker.close()


def test_the_library_of_the_models_is_imported_once_for_all_workers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LC_FLEET", "models")
    before = set(psutil.Process().children())
    warm_up(study_of("transformers:some/model"))
    (early,) = set(psutil.Process().children()) - before
    for score in (0.5, 0.75):
        worker, heard = spawned(tmp_path / "logs")
        seen = train(worker, heard, tmp_path, score)
        assert "transformers.modeling_utils" in seen["loaded"]  # type: ignore[operator]
        assert server_of(worker) == early
        worker.close()
    assert early.num_threads() == 1
    # One that cannot be imported is for the worker to tell of.
    nursery.prepare(worker_environment(Slot(0, None, 1)), ["no_such_module"])
    worker, heard = spawned(tmp_path / "logs")
    train(worker, heard, tmp_path, 1.0)
    assert server_of(worker) == early
    worker.close()
    # Nor does the one that follows a server that died forget them.
    early.kill()
    early.wait(PATIENCE)
    worker, heard = spawned(tmp_path / "logs")
    seen = train(worker, heard, tmp_path, 0.25)
    assert server_of(worker) not in (None, early)
    assert "transformers.modeling_utils" in seen["loaded"]  # type: ignore[operator]
    worker.close()


def test_a_worker_can_use_a_gpu_though_its_server_has_asked_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fork of a process that has asked CUDA whether it is there can begin CUDA no more."""
    monkeypatch.setenv("LC_FLEET", "curious")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    (tmp_path / "curious_library.py").write_text("import torch\ntorch.cuda.is_available()\n")
    nursery.prepare(worker_environment(Slot(0, None, 1)), ["curious_library"])
    for score in (0.5, 0.75):
        worker, heard = spawned(tmp_path / "logs", threads=2)
        seen = train(worker, heard, tmp_path, score)
        assert not seen["poisoned"]
        assert (seen["threads"], seen["session"], seen["cwd"]) == (2, True, os.getcwd())
        assert [p.partition(":")[0] for p in seen["open"]].count("pipe") == 2  # type: ignore[attr-defined]
        server_of(worker)
        worker.close()
        assert "exited with status 0" in heard.get(timeout=PATIENCE)[1]["how"]


def test_of_servers_for_other_surroundings_only_two_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    servers = []
    busy, heard = spawned(tmp_path / "logs")
    servers.append(server_of(busy))
    for i in range(3):
        monkeypatch.setenv("LC_FLEET", str(i))
        worker, _ = spawned(tmp_path / "logs")
        servers.append(server_of(worker))
        worker.close()
    assert len(set(servers)) == 4
    _, alive = psutil.wait_procs(servers[1:3], timeout=PATIENCE)
    assert alive == []
    # The one with a worker stays, and so does the last; the worker has noticed nothing.
    assert servers[0].is_running() and servers[3].is_running()
    train(busy, heard, tmp_path, 0.5)
    busy.close()


def test_a_worker_can_be_given_up_before_it_is_there(tmp_path: Path) -> None:
    for end in (LocalWorker.kill, LocalWorker.close):
        worker, heard = spawned(tmp_path / "logs")
        end(worker)
        message = heard.get(timeout=PATIENCE)[1]
        while message["event"] == "ready":
            message = heard.get(timeout=PATIENCE)[1]
        assert message["event"] == GONE


def test_a_server_goes_with_its_runner_even_while_it_imports(tmp_path: Path) -> None:
    code = (
        "import os, sys; from sft_tune.run import nursery\n"
        "server = nursery._nursery(dict(os.environ)).process.pid\n"
        "if os.fork(): print(server, flush=True)\n"  # the child holds no end of its socket
        "sys.stdin.read()"
    )
    runner = subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    with runner:
        assert runner.stdout is not None
        server = psutil.Process(int(runner.stdout.readline()))
        runner.send_signal(signal.SIGKILL)
        _, alive = psutil.wait_procs([server], timeout=PATIENCE)
        assert not alive
