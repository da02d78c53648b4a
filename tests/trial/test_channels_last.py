"""Convolutions whose kernels lie channels last, as on tensor cores: the same model and files."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from sft_tune.spec.config import TrialConfig
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial import trainee as trainees
from sft_tune.trial.averaging import Averaging
from sft_tune.trial.data import gather, prepare
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.models import BuiltModel
from sft_tune.trial.trainee import set_up

Configure = Callable[..., TrialConfig]
CPU = torch.device("cpu")
LAST = torch.channels_last


@pytest.fixture
def _channels_last(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lay out every model that is built as one on a GPU with tensor cores is."""
    build = trainees.build_model
    monkeypatch.setattr(trainees, "build_model", lambda *a, **k: build(*a, **k).lay_channels_last())


def kernels(module: nn.Module) -> Iterator[Tensor]:
    """Yield the kernels whose two layouts differ."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d) and part.kernel_size != (1, 1):
            yield part.weight


def test_the_layout_goes_through_the_network_and_changes_nothing(
    tmp_path: Any, digits: Configure
) -> None:
    config = digits()
    data = prepare(config.task, config.data, config.model, cache=tmp_path)
    model: BuiltModel = set_up(config, data, CPU).model
    model.module.eval()
    inputs = gather(data.train, torch.arange(8), CPU, normalize=model.normalize).inputs
    with torch.inference_mode():
        expected = model.logits(inputs)
    names, seen = list(model.module.state_dict()), []
    model.lay_channels_last()
    for part in model.module.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.register_forward_pre_hook(
                lambda _, given: seen.append(given[0].is_contiguous(memory_format=LAST))
            )
    with torch.inference_mode():
        found = model.logits(inputs)
    assert seen and all(seen)
    torch.testing.assert_close(found, expected)
    assert list(model.module.state_dict()) == names
    assert all(kernel.is_contiguous(memory_format=LAST) for kernel in kernels(model.module))


@pytest.mark.usefixtures("_channels_last")
@pytest.mark.parametrize("averaging", ["none", "ema"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd", "adafactor", "lion"])
def test_a_trial_that_is_resumed_is_the_same_trial(
    new_runner: Any, digits: Configure, optimizer: str, averaging: str
) -> None:
    config = digits(training={"optimizer": optimizer, "averaging": averaging})
    calm, stopped = new_runner("calm"), new_runner("stopped")
    calm.run(config)
    asked = iter([False] * 7 + [True])
    stopped.run(config, should_stop=lambda: next(asked))
    assert stopped.run(config).resumed_from == 7
    assert stopped.numbers() == calm.numbers()
    assert stopped.best() == calm.best()


def test_an_average_from_a_file_lies_as_the_weights_do() -> None:
    module = nn.Conv2d(3, 4, 3).to(memory_format=LAST)
    averaging = Averaging(module, TrainingSpec(averaging="ema"))
    stored = {name: part.contiguous() + 1 for name, part in module.state_dict().items()}
    averaging.restore(stored, 1)
    weight = averaging.tensors()["weight"]
    assert weight.is_contiguous(memory_format=LAST)
    assert torch.equal(weight, stored["weight"])


def test_a_trial_and_its_files_do_not_tell_the_layout(
    new_runner: Any, digits: Configure, request: pytest.FixtureRequest
) -> None:
    config = digits(training={"epochs": 1, "optimizer": "sgd"})
    plain, last = new_runner("plain"), new_runner("last")
    plain.run(config)
    request.getfixturevalue("_channels_last")
    last.run(config)
    for progress, numbers in plain.numbers().items():
        assert last.numbers()[progress]["metrics"] == pytest.approx(numbers["metrics"], rel=1e-3)
    ours, theirs = (load_checkpoint(one.paths.best) for one in (last, plain))
    assert all(kernel.is_contiguous() for kernel in kernels(ours))
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)
