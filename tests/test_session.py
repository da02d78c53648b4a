from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import optuna
import pytest

from sft_tune.errors import UserError
from sft_tune.run.events import Notice, RungReached, TrialEnded, TrialStarted
from sft_tune.session import forward_to, quiet_optuna, watching, with_budget
from sft_tune.spec.load import LoadedStudy, parse_study
from sft_tune.store.database import Database

SPEC = {
    "name": "s",
    "task": "image-classification",
    "data": {"source": "sklearn:digits"},
    "model": {"name": "builtin:convnet", "weights": "none"},
    "space": {"learning_rate": [1e-4, 1e-2]},
    "budget": {"trials": 10, "target": 0.9},
}


@pytest.fixture
def loaded() -> LoadedStudy:
    from pathlib import Path

    return LoadedStudy(parse_study(SPEC, root="."), "", Path("s.yaml"))


@pytest.fixture
def db() -> Iterator[Database]:
    database = Database.open("x.db", create=True)
    yield database
    database.dispose()


@dataclass
class Heard:
    """A watcher that writes down what it hears."""

    calls: list[tuple[str, Any, dict[str, Any]]] = field(default_factory=list)

    def __getattr__(self, name: str) -> Any:
        return lambda first, **rest: self.calls.append((name, first, rest))


def test_a_watcher_hears_every_event() -> None:
    heard = Heard()
    notify = forward_to(heard)  # type: ignore[arg-type]
    notify(TrialStarted(3, 0, {"epochs": 2}, 1))
    notify(RungReached(3, 0, 50, 0.5, {"accuracy": 0.5}, 1.5, False))
    notify(TrialEnded(3, 0, "completed", 0.5, 9.0, "note", True, {"epochs": 2}))
    notify(Notice("saved"))
    assert [(name, first) for name, first, _ in heard.calls] == [
        ("started", 3),
        ("rung", 3),
        ("ended", 3),
        ("notice", "saved"),
    ]
    assert heard.calls[1][2]["train_loss"] == 1.5
    assert heard.calls[2][2]["leads"] is True


def test_a_budget_may_be_changed_and_the_rest_of_it_stays(loaded: LoadedStudy) -> None:
    assert with_budget(loaded, trials=None, hours=None) is loaded
    changed = with_budget(loaded, trials=20, hours=0.5).spec.budget
    assert (changed.trials, changed.hours, changed.target) == (20, 0.5, 0.9)
    with pytest.raises(UserError, match=r"budget\.trials: .*got 0"):
        with_budget(loaded, trials=0, hours=None)


def test_a_password_is_not_shown_to_who_watches(
    loaded: LoadedStudy, db: Database, capsys: pytest.CaptureFixture[str]
) -> None:
    # The tables of one database under the name of another, which a test has no server for.
    posing = Database("postgresql+psycopg://tuner:hunter2@db.example.org/studies", db.engine)
    with watching(loaded.spec, posing):
        pass
    said = capsys.readouterr().out
    assert "tuner:***@db.example.org/studies" in said
    assert "hunter2" not in said


def test_optuna_says_as_much_as_before_when_it_is_over() -> None:
    before = optuna.logging.get_verbosity()
    with quiet_optuna():
        assert optuna.logging.get_verbosity() == optuna.logging.WARNING
    assert optuna.logging.get_verbosity() == before
