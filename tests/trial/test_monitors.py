from __future__ import annotations

import random
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sft_tune.errors import UserError
from sft_tune.trial import device, monitors
from sft_tune.trial.monitors import Clock, Monitors
from sft_tune.trial.seeding import random_states, restore_random_states, seed_everything

CPU = torch.device("cpu")
CUDA = torch.device("cuda")


def filled(losses: list[float], norms: list[float] | None = None, **options: Any) -> Monitors:
    watch = Monitors(CPU, norms_may_overflow=options.get("norms_may_overflow", False))
    for loss, norm in zip(losses, norms or [1.0] * len(losses), strict=True):
        watch.add(torch.tensor(loss), torch.tensor(norm), 4)
    return watch


def test_the_mean_loss_is_per_example_and_the_norm_the_median() -> None:
    watch = Monitors(CPU, norms_may_overflow=False)
    for loss, norm, size in [(1.0, 9.0, 8), (2.0, 1.0, 8), (4.0, 2.0, 4)]:
        watch.add(torch.tensor(loss), torch.tensor(norm), size)
    assert watch.train_loss() == pytest.approx((8 + 16 + 16) / 20)
    assert (watch.gradient_norm(), watch.gradient_norm_max()) == (2.0, 9.0)
    assert watch.samples() == 20
    watch.clear()
    watch.add(torch.tensor(5.0), torch.tensor(3.0), 1)
    assert (watch.train_loss(), watch.gradient_norm(), watch.gradient_norm_max()) == (5.0, 3.0, 3.0)


def test_the_update_is_the_median_of_the_steps_that_moved_something() -> None:
    watch = filled([1.0])
    assert watch.update_ratio() is None
    for ratio in (0.0, 3e-3, 1e-3, 9e-3):
        watch.add(torch.tensor(1.0), torch.tensor(1.0), 4, torch.tensor(ratio))
    assert watch.update_ratio() == pytest.approx(3e-3)
    again = Monitors(CPU, norms_may_overflow=False)
    again.restore(watch.tensors(), watch.sizes)
    assert again.update_ratio() == watch.update_ratio()
    # What an earlier attempt trained took none of this attempt's time.
    assert again.samples() == 0
    again.add(torch.tensor(1.0), torch.tensor(1.0), 7)
    assert again.samples() == 7
    again.clear()
    assert again.update_ratio() is None


@pytest.mark.parametrize(
    ("losses", "norms", "expected"),
    [
        ([1.0, 2.0], [1.0, 1.0], None),
        ([1.0, float("nan"), float("inf")], [1.0] * 3, "loss became nan at step 12"),
        ([1.0, 1.0, float("-inf")], [1.0] * 3, "loss became -inf at step 13"),
        ([1.0, 1.0], [1.0, float("inf")], "gradient norm became inf at step 12"),
    ],
)
def test_the_first_number_that_is_not_finite_is_named(
    losses: list[float], norms: list[float], expected: str | None
) -> None:
    assert filled(losses, norms).fault(10 + len(losses), at_rung=True) == expected


def test_what_comes_after_a_rung_or_a_resume_is_looked_at() -> None:
    watch = filled([1.0, 1.0])
    assert watch.fault(2, at_rung=True) is None
    watch.clear()
    watch.add(torch.tensor(float("nan")), torch.tensor(1.0), 4)
    assert watch.fault(3, at_rung=True) == "loss became nan at step 3"
    resumed = Monitors(CPU, norms_may_overflow=False)
    resumed.restore(watch.tensors(), watch.sizes)
    # What was looked at before is not looked at again: its windows came along.
    assert resumed.fault(3, at_rung=True) is None
    resumed.add(torch.tensor(float("nan")), torch.tensor(1.0), 4)
    assert resumed.fault(4, at_rung=True) == "loss became nan at step 4"


def fault_of(losses: list[float], resumed_at: int | None = None) -> str | None:
    """Look at each of ``losses`` as it comes, on the CPU; resume before one of them."""
    watch = Monitors(CPU, norms_may_overflow=False)
    for step, loss in enumerate(losses, 1):
        if step - 1 == resumed_at:
            saved, sizes = watch.tensors(), watch.sizes
            watch = Monitors(CPU, norms_may_overflow=False)
            watch.restore(saved, sizes)
        watch.add(torch.tensor(loss), torch.tensor(1.0), 4)
        if said := watch.fault(step, at_rung=False):
            return said
    return None


@pytest.mark.parametrize(
    ("losses", "expected"),
    [
        ([2.3] * 20 + [1e3] * 10, "loss exploded: 102 over the last 10 steps"),
        ([2.3 * 1.3**step for step in range(60)], "loss exploded"),
        ([0.01] * 10 + [9.0] * 40, None),  # began better than guessing, fell back
        ([0.01] * 10 + [11.0] * 40, "loss exploded: 11 over the last 10 steps, 0.01 over"),
        ([2.3] * 20 + [200.0] + [2.3] * 20, None),  # one bad batch
        ([7.0] * 10 + [60.0] * 40, None),
        ([2.3, 9.0, 23.0, 9.0, *[2.3] * 40], None),  # a rough start
        ([1e6] * 30, None),  # large from the start, and no worse
    ],
)
def test_a_loss_that_explodes_is_told_from_one_that_is_rough(
    losses: list[float], expected: str | None
) -> None:
    said = fault_of(losses)
    assert (said or "").startswith(expected) if expected else said is None
    for at in (5, 15, 25):
        assert fault_of(losses, resumed_at=at) == said


@given(st.floats(0.05, 12.0), st.floats(0.0, 0.1), st.lists(st.floats(-0.9, 3.0), max_size=80))
def test_a_healthy_curve_does_not_explode(start: float, fall: float, noise: list[float]) -> None:
    """A loss that falls, under noise of up to four times its size."""
    losses = [start * (1 - fall) ** step * (1 + wave) for step, wave in enumerate(noise)]
    losses[:10] = [start] * len(losses[:10])
    assert fault_of(losses) is None


def test_a_norm_may_overflow_where_a_scaler_watches() -> None:
    watch = filled([1.0], [float("inf")], norms_may_overflow=True)
    assert watch.fault(1, at_rung=True) is None
    assert watch.gradient_norm() == watch.gradient_norm_max() == 0.0
    for norm in (3.0, 5.0, float("nan")):
        watch.add(torch.tensor(1.0), torch.tensor(norm), 4)
    assert (watch.gradient_norm(), watch.gradient_norm_max()) == (4.0, 5.0)


def test_elsewhere_than_on_the_cpu_it_is_looked_at_rarely(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(monitors, "CHECK_EVERY", {})
    watch = filled([float("nan")] + [1.0] * 48)
    assert watch.fault(49, at_rung=False) is None
    watch.add(torch.tensor(1.0), torch.tensor(1.0), 4)
    assert watch.fault(50, at_rung=False) == "loss became nan at step 1"
    assert watch.fault(50, at_rung=True) is None
    watch.add(torch.tensor(float("inf")), torch.tensor(1.0), 4)
    assert watch.fault(51, at_rung=True) == "loss became inf at step 51"


def test_time_spent_aside_is_no_training() -> None:
    clock = Clock()
    assert clock.total() == clock.training() == 0.0
    clock.earlier = 10.0
    clock.start()
    with clock.aside(CPU):
        torch.randn(200, 200) @ torch.randn(200, 200)
    assert 0 <= clock.training() < clock.attempt()
    first = clock.lap()
    assert 0 <= first and 0 <= clock.lap() <= clock.training() - first
    assert clock.total() == pytest.approx(10.0 + clock.attempt(), abs=0.5)


def draws() -> list[float]:
    drawn = [random.random(), random.gauss(0, 1), float(np.random.rand()), float(np.random.randn())]
    return [*drawn, float(torch.rand(1))]


def test_random_states_come_back() -> None:
    seed_everything(2**31 - 1)
    # An odd number of normal draws leaves half a pair in Python's and NumPy's generators.
    draws()
    tensors, rest = random_states(CPU)
    first = draws()
    seed_everything(5)
    assert draws() != first
    restore_random_states(tensors, rest, CPU)
    assert draws() == first
    seed_everything(2**31 - 1)
    draws()
    assert draws() == first


def test_precision_is_single_on_the_cpu_unless_asked() -> None:
    assert device.resolve_precision("auto", CPU) is torch.float32
    assert device.resolve_precision("bf16", CPU) is torch.bfloat16
    assert not device.is_reduced("auto", CPU) and not device.is_reduced("tf32", CPU)
    assert device.is_reduced("bf16", CPU)


@pytest.fixture
def _tf32_as_it_was() -> Iterator[None]:
    before = products_are_rounded()
    yield
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before


def products_are_rounded() -> tuple[bool, bool]:
    """Whether those of convolutions are, and those of matrices: torch has these without a GPU."""
    return torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32


@pytest.mark.usefixtures("_tf32_as_it_was")
def test_products_on_a_gpu_are_rounded_but_for_full_single_precision() -> None:
    for precision in ("tf32", "bf16", "auto"):
        device.use_tf32("fp32", CUDA)
        assert products_are_rounded() == (False, False)
        device.use_tf32(precision, CPU)
        assert products_are_rounded() == (False, False)
        device.use_tf32(precision, CUDA)
        assert products_are_rounded() == (True, True)


@pytest.mark.usefixtures("_tf32_as_it_was")
@pytest.mark.parametrize("before", [(True, False), (True, True), (False, False)])
def test_what_is_compared_on_a_gpu_is_exact_and_then_all_is_as_it_was(
    before: tuple[bool, bool],
) -> None:
    torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32 = before
    with device.exact(CPU):
        assert products_are_rounded() == before
    with pytest.raises(KeyError), device.exact(CUDA):
        assert products_are_rounded() == (False, False)
        raise KeyError
    assert products_are_rounded() == before


def test_peak_memory_is_of_what_came_last() -> None:
    with device.memory_of_its_own(CPU):
        large = torch.ones(60_000_000)
        high = device.peak_memory(CPU)
    del large
    with device.memory_of_its_own(CPU):
        low = device.peak_memory(CPU)
    assert high - low > 150_000_000


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: CUBLAS_STATUS_NOT_INITIALIZED when calling `cublasCreate(handle)`",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_NOT_INITIALIZED",
        "GET was unable to find an engine to execute this computation",
        "FIND was unable to find an engine to execute this computation",
        "CUDA error: out of memory",
        "CUDA driver error: out of memory",
        "CUDA ran out of memory outside PyTorch's allocator. If this workload uses many",
    ],
)
def test_a_library_that_runs_out_of_memory_is_understood(said: str) -> None:
    assert device.is_out_of_memory(RuntimeError(said))
    assert not device.is_out_of_memory(ValueError(said))


def test_other_errors_of_a_gpu_are_no_lack_of_memory() -> None:
    for said in ("CUDA error: device-side assert triggered", "CUBLAS_STATUS_NOT_SUPPORTED"):
        assert not device.is_out_of_memory(RuntimeError(said))


def test_cudas_own_memory_is_taken_from_the_share_of_a_gpu() -> None:
    of_four = device.share_of_tensors(0.25, 80 * 2**30)
    assert 4 * (of_four * 80 + 0.625) == pytest.approx(80)
    assert device.share_of_tensors(0.125, 4 * 2**30) == 0.0625


def test_a_device_that_is_not_here_is_named() -> None:
    with pytest.raises(UserError, match="'cuda:93' is not here"):
        device.open_device("cuda:93")
