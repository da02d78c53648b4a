"""A real GPU as its processes share it. Skipped where there is none.

`python3 -m pytest tests/gpu` runs all that needs a GPU (`pytest` alone does not find `sft_tune`
where that is not installed). A machine without a network that has torch, transformers and the like
lacks pydantic; `.whl` is carried there from one that has a network:

    pip download --no-deps --only-binary=:all: --python-version 3.12 -d .whl \\
        --platform manylinux2014_x86_64 pydantic==2.14.4 pydantic-core==2.50.5 \\
        annotated-types==0.8.0 typing-inspection==0.4.5
    python3 -m pip install -q --no-index --no-deps --target /tmp/site .whl/*.whl
    PYTHONPATH=/tmp/site python3 -m pytest -q -p no:benchmark tests/gpu
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.model import ModelSpec
from sft_tune.trial import device, trainee
from sft_tune.trial.convnet import ConvNet
from sft_tune.trial.lora import exported, inject
from sft_tune.trial.stack import common
from sft_tune.trial.trainee import set_up

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that torch can use"),
    # Some versions want newer settings of TF32, of which others warn.
    pytest.mark.filterwarnings("ignore:Please use the new API settings"),
]

GPU = torch.device("cuda:0")
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def _no_limit() -> Iterator[None]:
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)
    torch.cuda.empty_cache()


def configured(weights: Path | str = "none", seed: int = 1, **training: Any) -> TrialConfig:
    settings = {
        "task": "image-classification",
        "data": {"source": "sklearn:digits", "train_limit": 64, "validation_limit": 32},
        "model": {"name": "builtin:convnet", "weights": str(weights)},
        "training": {"epochs": 1, "batch_size": 16, **training},
        "objective": {"rungs": 1},
        "seed": seed,
    }
    return TrialConfig.model_validate(settings)


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a process that has not begun CUDA: this one has."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    return subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": path},
    )


PROBE = """
import sys
from pathlib import Path
from sft_tune.spec.config import TrialConfig
from sft_tune.trial.check import probe
config = TrialConfig.model_validate_json(sys.argv[1])
print(probe(config, [16], device="cuda:0", cache=Path(sys.argv[2]))["batch_sizes"][0]["ok"])
"""


def test_a_fresh_process_can_begin_with_a_probe(tmp_path: Path) -> None:
    with python(PROBE, configured().model_dump_json(), str(tmp_path)) as process:
        said, _ = process.communicate(timeout=200)
    assert (process.returncode, said.split()) == (0, ["True"])


BUSY = """
import torch
image = torch.randn(8, 64, 32, 32, device="cuda", requires_grad=True)
convolution, head = torch.nn.Conv2d(64, 64, 3).cuda(), torch.nn.Linear(57600, 9).cuda()
with torch.autocast("cuda", torch.bfloat16):
    head(convolution(image).flatten(1)).float().sum().backward()
torch.cuda.synchronize()
print(torch.cuda.memory_reserved(), flush=True)
input()
"""


def test_a_process_takes_no_more_than_is_left_to_it_beside_its_tensors() -> None:
    torch.zeros(1, device=GPU)
    torch.cuda.synchronize()
    before = torch.cuda.mem_get_info(GPU)[0]
    with python(BUSY) as process:
        assert process.stdout is not None
        tensors = int(process.stdout.readline())
        taken = before - torch.cuda.mem_get_info(GPU)[0]
        process.communicate("\n", timeout=60)
    assert 0 < taken - tensors <= device.CONTEXT_BYTES


@pytest.mark.usefixtures("_no_limit")
def test_a_share_of_the_gpu_leaves_room_for_cuda_itself() -> None:
    device.confine(torch.get_num_threads(), 0.25)
    total = torch.cuda.get_device_properties(GPU).total_memory
    allowed = total / 4 - device.CONTEXT_BYTES
    assert torch.cuda.get_per_process_memory_fraction(GPU) == pytest.approx(allowed / total)
    assert f"{int(allowed / 1e9)}" in device.describe_device(GPU)
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(int(allowed) + 2**21, dtype=torch.uint8, device=GPU)


def test_merged_updates_take_the_memory_of_one_layer_at_a_time() -> None:
    pytest.importorskip("peft")
    layers = nn.Sequential(*(nn.Linear(1024, 1024) for _ in range(16)))
    spec = ModelSpec(name="builtin:convnet", weights="none", lora_rank=4)
    inject(layers, spec, [str(place) for place in range(len(layers))])
    layers.to(GPU)
    torch.cuda.reset_peak_memory_stats(GPU)
    before = torch.cuda.memory_allocated(GPU)
    weights = exported(layers, spec)
    of_a_layer = 4 * 1024**2
    assert torch.cuda.max_memory_allocated(GPU) - before <= 4 * of_a_layer
    assert torch.equal(weights["3.weight"], layers[3].get_base_layer().weight.cpu())


def test_a_stack_draws_the_heads_of_its_trials_without_making_the_model_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "weights.safetensors"
    save_file(ConvNet(10).state_dict(), weights)
    first = common.Common(configured(weights, freeze="backbone"), GPU, tmp_path, 32)
    config = configured(weights, seed=7, freeze="backbone")
    alone = set_up(config, first.data, GPU).model.module
    monkeypatch.setattr(trainee, "build_model", None)
    head = first.trainee(config).model.module.get_submodule("head")
    assert {part.device for part in head.parameters()} == {GPU}
    for name, part in head.named_parameters():
        assert torch.equal(part, alone.get_parameter(f"head.{name}"))
