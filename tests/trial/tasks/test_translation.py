"""Encoder-decoders: sources and targets, what is written, resume, and what is exported."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from sft_tune.errors import DataError
from sft_tune.spec.config import TrialConfig
from sft_tune.spec.tasks import TASKS
from sft_tune.spec.training import TrainingSpec
from sft_tune.trial.data import Prepared, TextSplit, gather, prepare
from sft_tune.trial.data.arrays import Ragged
from sft_tune.trial.data.joined import with_validation
from sft_tune.trial.export.verify import verify
from sft_tune.trial.export.write import export
from sft_tune.trial.load import load_checkpoint
from sft_tune.trial.losses import IGNORED
from sft_tune.trial.models import Writing, build_model
from sft_tune.trial.models_language import forward_arguments, written
from sft_tune.trial.tasks import translation
from tests.trial.writers import write_model

Configure = Callable[..., TrialConfig]
LETTERS = dict(zip(("one", "two", "three", "four"), "abcd", strict=True))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("models")
    for kind in ("t5", "bart"):
        write_model(folder / kind, kind)
    return folder


@pytest.fixture
def translating(models: Path, tmp_path: Path) -> Configure:
    """Make a configuration: letters for numbers, 32 to train on, 8 to validate."""
    generator = random.Random(0)
    rows = []
    for _ in range(40):
        words = generator.choices(list(LETTERS), k=generator.randint(1, 5))
        rows.append({"source": " ".join(words), "target": " ".join(LETTERS[w] for w in words)})
    source = tmp_path / "letters.jsonl"
    source.write_text("".join(json.dumps(row) + "\n" for row in rows))

    def configure(kind: str = "t5", **sections: dict[str, Any]) -> TrialConfig:
        settings: dict[str, dict[str, Any]] = {
            "data": {"source": str(source), "max_length": 16, "source_prefix": "user : "},
            "model": {"name": f"transformers:{models / kind}"},
            "training": {"epochs": 1, "batch_size": 8, "learning_rate": 0.003},
            "objective": {"rungs": 2, "metric": "chrf", "beams": 2, "max_new_tokens": 6},
        }
        for name, section in sections.items():
            settings[name] |= section
        return TrialConfig.model_validate({"task": "seq2seq", "seed": 1, **settings})

    return configure


def prepared(config: TrialConfig, tmp_path: Path) -> Prepared:
    return prepare(config.task, config.data, config.model, cache=tmp_path / "cache")


def test_sources_have_their_prefix_and_targets_their_end(
    translating: Configure, tmp_path: Path
) -> None:
    data = prepared(translating(data={"max_target_length": 4}), tmp_path)
    validation = data.validation
    assert isinstance(validation, TextSplit) and validation.references is not None
    batch = gather(validation, torch.arange(len(validation)), "cpu")
    ids, labels = batch.inputs["input_ids"].tolist(), batch.targets.tolist()
    assert all(row[:2] == [3, 6] for row in ids)  # user :
    assert all(row[-1] in (1, IGNORED) and len(row) <= 4 for row in labels)
    texts = [validation.references.text(i) for i in range(len(validation))]
    # Cut to four tokens, and measured by the whole text.
    assert max(len(text.split()) for text in texts) == 4
    assert data.facts["target_tokens"]["validation"]["max"] == 5
    joined = with_validation(data).train
    assert isinstance(joined, TextSplit)
    last = gather(joined, torch.tensor([len(joined) - 1]), "cpu").targets[0].tolist()
    assert last == [token for token in labels[-1] if token != IGNORED]


@pytest.mark.parametrize("kind", ["t5", "bart"])
def test_the_loss_is_the_librarys_and_micro_batches_add_up_to_it(
    kind: str, translating: Configure, tmp_path: Path
) -> None:
    config = translating(kind)
    train = prepared(config, tmp_path).train
    model = build_model(config.task, config.model, (), pad_id=0)
    model.module.eval()
    batch = gather(train, torch.arange(6), "cpu")
    expected = model.module(**batch.inputs).loss
    total = translation.weight(batch)
    for sizes in ([6], [1, 2, 3]):
        shares = []
        for rows in torch.arange(6).split(sizes):
            part = gather(train, rows, "cpu")
            outputs = model.logits(part.inputs)
            shares.append(translation.share_of_loss(outputs, part, total, TrainingSpec()))
        assert torch.allclose(torch.stack(shares).sum(), expected, atol=1e-5)


def test_a_library_without_a_shift_of_its_own_gets_ours(
    translating: Configure, tmp_path: Path
) -> None:
    config = translating()
    train = prepared(config, tmp_path).train
    module: Any = build_model(config.task, config.model, (), pad_id=0).module
    inputs = gather(train, torch.arange(6), "cpu").inputs
    expected = forward_arguments(module, inputs, torch.float32)

    class Bare:
        config = module.config

    found = forward_arguments(Bare(), inputs, torch.float32)
    assert torch.equal(found["decoder_input_ids"], expected["decoder_input_ids"])


def test_texts_are_written_greedily_or_by_beams_and_alone_as_in_a_batch(
    translating: Configure, tmp_path: Path
) -> None:
    config = translating()
    data = prepared(config, tmp_path)
    model = build_model(config.task, config.model, (), pad_id=0)
    model.module.eval()
    batch = gather(data.validation, torch.arange(4), "cpu")
    with torch.inference_mode():
        for beams in (1, 3):
            model.writing = Writing(beams, 5)
            together = written(model, batch.inputs)
            assert together.shape[1] <= 6  # the token that begins it comes first
            for row in range(4):
                alone = written(model, gather(data.validation, torch.tensor([row]), "cpu").inputs)
                length = alone.shape[1]
                assert together[row, :length].tolist() == alone[0].tolist()


def test_what_is_written_is_measured_by_the_libraries(models: Path) -> None:
    texts = ["a b c d", "d e", "f"]
    flat = np.frombuffer("".join(texts).encode(), np.uint8)
    split = TextSplit(
        tokens=np.zeros(3, np.int32),
        offsets=np.arange(4),
        targets=np.zeros(3),
        pad_id=0,
        references=Ragged(flat, np.array([0, 7, 10, 11])),
    )
    data = Prepared((), split, split, None, {}, tokenizer=models / "t5")
    letters = {letter: 13 + i for i, letter in enumerate("abcdefgh")}
    rows = [[0, *(letters[x] for x in row.split()), 1] for row in ("a b c d", "d f", "f")]
    width = max(map(len, rows))
    kept = {
        "written": torch.tensor([row + [IGNORED] * (width - len(row)) for row in rows]),
        "loss": torch.tensor([1.0, 2.0, 3.0]),
        "right": torch.tensor([2.0, 1.0, 0.0]),
        "tokens": torch.tensor([3, 2, 1]),
    }
    found = translation.metrics(TASKS["seq2seq"].metrics, kept, split, data)
    assert found["loss"] == 1.0 and found["token_accuracy"] == 0.5
    assert found["exact_match"] == pytest.approx(2 / 3)
    assert found["rouge1"] == found["rougeL"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert 0 < found["bleu"] < 100 and 50 < found["chrf"] < 100
    del kept["written"]
    assert set(translation.metrics((), kept, split, data)) == {"loss", "token_accuracy"}


@pytest.mark.parametrize(
    ("kind", "sections"),
    [
        ("t5", {"model": {"lora_rank": 2}, "objective": {"metric": "rougeL"}}),
        ("bart", {"training": {"gradient_checkpointing": True, "micro_batch": 3}}),
    ],
    ids=["lora", "checkpointing"],
)
def test_a_stopped_trial_goes_on_bit_for_bit_and_is_exported(
    kind: str,
    sections: dict[str, dict[str, Any]],
    translating: Configure,
    new_runner: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    import transformers

    config = translating(kind, **sections)
    whole, broken = new_runner("whole"), new_runner("broken")
    assert whole.run(config).reason == "completed"
    left = iter(range(1))
    assert broken.run(config, should_stop=lambda: next(left, None) is None).reason == "stopped"
    outcome = broken.run(config)
    assert outcome.reason == "completed" and outcome.resumed_from == 1
    assert broken.numbers() == whole.numbers()
    assert broken.best()[0] == whole.best()[0]
    assert {"chrf", "bleu", "exact_match", config.objective.metric} <= set(outcome.metrics)

    module: Any = load_checkpoint(broken.paths.best)
    assert module.get_output_embeddings().weight is module.get_input_embeddings().weight
    folder, reference = tmp_path / "out", tmp_path / "reference.safetensors"
    folder.mkdir()
    where: dict[str, Any] = {"reference": reference, "device": "cpu", "cache": broken.cache}
    facts = export(config, broken.paths.best, folder, onnx=False, **where)
    found = verify(config, folder, onnx=False, call=facts["call"], batch_size=16, **where)
    assert found["difference"] < 1e-5
    assert found["metrics"] == pytest.approx(outcome.metrics, rel=1e-5)
    writer = transformers.AutoModelForSeq2SeqLM.from_pretrained(folder)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    inputs = tokenizer("user : one two", return_tensors="pt")
    assert writer.generate(**inputs, max_new_tokens=3).shape[1] >= 2


def test_an_empty_target_and_a_missing_column_are_told(
    translating: Configure, tmp_path: Path
) -> None:
    config = translating(data={"target_column": "targets"})
    with pytest.raises(DataError, match="no column 'targets'; did you mean 'target'"):
        prepared(config, tmp_path)
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"source": "one", "target": "a"}\n' * 4 + '{"source": "one", "target": ""}\n')
    config = translating(data={"source": str(rows)})
    with pytest.raises(DataError, match="1 of 5 targets are empty, at .*line 5"):
        prepared(config, tmp_path)
