"""The test split, evaluated once, with the best weights of a trial that has ended."""

from __future__ import annotations

from pathlib import Path

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint
from sft_tune.trial.data import prepare
from sft_tune.trial.device import memory_of_its_own, open_device
from sft_tune.trial.evaluate import predict
from sft_tune.trial.features import use_features
from sft_tune.trial.portions import Portion
from sft_tune.trial.tasks import task_of
from sft_tune.trial.trainee import set_up


def test_metrics(
    config: TrialConfig, best: Path, *, device: str, cache: Path, batch_size: int
) -> dict[str, float] | None:
    """Return the metrics of the weights in ``best`` on the test split; None where there is none.

    Args:
        config: the configuration that was trained.
        best: the trial's ``best.safetensors``.
        device: ``cpu``, or ``cuda:N``.
        cache: folder of prepared data.
        batch_size: examples per batch.

    Raises:
        DataError: when the test split is not what the configuration says.
        OSError, ValueError: when ``best`` cannot be read.
    """
    data = prepare(config.task, config.data, config.model, cache=cache, with_test=True)
    if data.test is None:
        return None
    where = open_device(device)
    # Features of a backbone that the trial has trained are of use to nobody else.
    own_backbone = config.model.lora_rank is not None or config.training.freeze != "backbone"
    if config.model.lora_merge:
        # Its weights are those of a model without LoRA.
        model = config.model.model_copy(update={"lora_rank": None})
        config = config.model_copy(update={"model": model})
    with memory_of_its_own(where):
        trainee = set_up(config, data, where)
        tensors, _ = checkpoint.read(best)
        trainee.model.module.load_state_dict(tensors)
        if not own_backbone:
            use_features(trainee, cache, batch_size, test=True)
        task = task_of(config.task, config.data)
        kept = predict(
            task,
            trainee.model,
            trainee.features.get("test", data.test),
            device=where,
            dtype=trainee.dtype,
            batch_size=batch_size,
            portion=Portion(),
        )
        return task.metrics([config.objective.metric], kept, data.test, data)
