"""Small real data and small models: digits from scikit-learn, a two-layer BERT over few words."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from sft_tune.spec.config import TrialConfig
from sft_tune.trial import checkpoint
from sft_tune.trial.loop import run_trial
from sft_tune.trial.outcome import Evaluation, Outcome
from sft_tune.trial.paths import TrialPaths

Configure = Callable[..., TrialConfig]
WORDS = ("good", "bad", "film", "plot", "the", "a", "was", "very", "not", "dull", "bright", "end")


@pytest.fixture(scope="package", autouse=True)
def _one_thread() -> Iterator[None]:
    """Two threads that wait for each other on a busy machine take twenty times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def digits() -> Configure:
    """Make a configuration over 48 handwritten digits: 6 steps an epoch, 12 in all, 4 rungs."""

    def configure(**sections: Any) -> TrialConfig:
        settings: dict[str, Any] = {
            "task": "image-classification",
            "data": {
                "source": "sklearn:digits",
                "classes": [0, 1, 2, 3],
                "train_limit": 48,
                "validation_limit": 24,
            },
            "model": {"name": "builtin:convnet", "weights": "none", "dropout": 0.2},
            "training": {
                "epochs": 2,
                "batch_size": 8,
                "learning_rate": 0.003,
                "augment": "flip_crop",
            },
            "objective": {"rungs": 4},
            "seed": 3,
        }
        return TrialConfig.model_validate(_merged(settings, sections))

    return configure


@pytest.fixture
def sentences(tiny_bert: Path, tmp_path: Path) -> Configure:
    """Make a configuration over 40 short sentences: 5 steps an epoch, 10 in all, 5 rungs."""
    rows = []
    for i in range(56):
        label = "pos" if i % 2 else "neg"
        filler = " ".join(WORDS[2 + (i * k) % 10] for k in range(1, 2 + i % 6))
        rows.append({"text": f"{'good' if i % 2 else 'bad'} {filler}", "label": label})
    source = tmp_path / "sentences.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def configure(**sections: Any) -> TrialConfig:
        settings: dict[str, Any] = {
            "task": "text-classification",
            "data": {"source": str(source), "train_limit": 40, "max_length": 16},
            "model": {"name": f"transformers:{tiny_bert}"},
            "training": {"epochs": 2, "batch_size": 8, "learning_rate": 0.003},
            "objective": {"rungs": 5, "metric": "f1_macro"},
            "seed": 5,
        }
        return TrialConfig.model_validate(_merged(settings, sections))

    return configure


@pytest.fixture(params=["digits", "sentences"])
def configure(request: pytest.FixtureRequest) -> Configure:
    """Make configurations of both tasks, one after the other."""
    chosen: Configure = request.getfixturevalue(request.param)
    return chosen


@pytest.fixture(scope="session")
def tiny_bert(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with a BERT of two layers, made up, and a tokenizer of a dozen words."""
    from transformers import BertConfig, BertModel, BertTokenizer

    folder = tmp_path_factory.mktemp("tiny-bert")
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n")
    tokenizer = BertTokenizer(vocab=str(folder / "vocab.txt"))
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    torch.manual_seed(0)
    BertModel(config).half().save_pretrained(folder)
    return folder


@dataclass
class Runner:
    """Runs trials in one folder, and keeps what they report."""

    paths: TrialPaths
    cache: Path
    evaluations: list[Evaluation] = field(default_factory=list)

    def run(
        self,
        config: TrialConfig,
        *,
        report: Callable[[Evaluation], bool] = lambda _: True,
        should_stop: Callable[[], bool] = lambda: False,
        checkpoint_seconds: float = 0.0,
        device: str = "cpu",
    ) -> Outcome:
        """Run ``config`` with a checkpoint at every rung."""

        def note(evaluation: Evaluation) -> bool:
            self.evaluations.append(evaluation)
            return report(evaluation)

        return run_trial(
            config,
            self.paths,
            device=device,
            cache=self.cache,
            report=note,
            should_stop=should_stop,
            checkpoint_seconds=checkpoint_seconds,
            evaluation_batch_size=16,
        )

    def best(self) -> tuple[dict[str, bytes], dict[str, Any]]:
        """Return the bits of the best weights, and the header of their file."""
        tensors, header = checkpoint.read(self.paths.best)
        return {name: t.numpy().tobytes() for name, t in tensors.items()}, header

    def numbers(self) -> dict[int, dict[str, Any]]:
        """Return what was reported by rung, but for the cost: the last report of each."""
        records = {e.progress: e.to_json() for e in self.evaluations}
        for record in records.values():
            for cost in ("seconds", "samples_per_second", "memory"):
                del record[cost]
        return records


@pytest.fixture
def runner(tmp_path: Path) -> Runner:
    """Return what runs trials in a folder of this test."""
    return Runner(TrialPaths(tmp_path / "trial"), tmp_path / "prepared")


@pytest.fixture
def new_runner(tmp_path: Path) -> Callable[[str], Runner]:
    """Return a maker of runners in folders of their own, over the same prepared data."""
    return lambda name: Runner(TrialPaths(tmp_path / name), tmp_path / "prepared")


def _merged(settings: dict[str, Any], sections: dict[str, Any]) -> dict[str, Any]:
    merged = dict(settings)
    for name, value in sections.items():
        merged[name] = {**settings[name], **value} if isinstance(value, dict) else value
    return merged
