from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy import text

from sft_tune.store import attributes, checkpoints, claims, reads, studies
from sft_tune.store.attributes import trial_attributes
from sft_tune.store.claims import EndedTrial, LeaseLostError
from sft_tune.store.database import Database
from sft_tune.store.optuna_storage import add_reports
from sft_tune.store.outcomes import STATE_OF_REASON
from sft_tune.store.records import StudyRecord
from tests.store.conftest import NOW, begin, finish, outcome, rung, start, take, take_abandoned


def only_ended(db: Database, study: StudyRecord) -> EndedTrial:
    (ended,) = claims.untold(db, study.id)
    return ended


def test_rungs_are_kept_in_order_and_replayed_ones_replaced(
    db: Database, study: StudyRecord
) -> None:
    claim = start(db, study)
    for progress, accuracy in ((10, 0.4), (30, 0.6), (20, 0.5), (10, 0.45)):
        examples = 1000 if progress < 30 else None
        claims.record_evaluation(db, claim, rung(progress, accuracy, examples=examples))
    rows = reads.evaluation_rows(db, study.name, 0)
    assert [(row.progress, row.metrics["accuracy"]) for row in rows] == [
        (10, 0.45),
        (20, 0.5),
        (30, 0.6),
    ]
    assert [row.examples for row in rows] == [1000, 1000, None]
    first = rows[0]
    assert (first.epoch, first.step, first.train_loss, first.validation_loss) == (1.0, 30, 0.7, 0.6)
    assert (first.learning_rate, first.gradient_norm, first.seconds) == (1e-3, 1.5, 2.5)
    assert (first.gradient_norm_max, first.update_ratio) == (4.5, 2e-3)
    assert (first.samples_per_second, first.memory) == (321.0, 5_000_000_000)


def test_rungs_of_many_trials_are_written_at_once_but_of_those_that_were_lost(
    db: Database, study: StudyRecord
) -> None:
    ours, other, lost = (start(db, study) for _ in range(3))
    claims.record_evaluation(db, ours, rung(10, 0.1))
    assert take_abandoned(db, study, "thief", dead=("me",)) is not None  # the first: ours
    left = claims.record_evaluations(
        db, [(ours, rung(20, 0.2)), (other, rung(10, 0.3)), (lost, rung(10, 0.4))]
    )
    assert left.keys() == {ours.id}
    assert isinstance(left[ours.id], LeaseLostError)
    again = [(other, rung(10, 0.5)), (lost, rung(20, 0.6))]
    assert claims.record_evaluations(db, again) == {}
    rows = reads.evaluation_rows(db, study.name)
    found = [(row.number, row.progress, row.metrics["accuracy"]) for row in rows]
    assert found == [(0, 10, 0.1), (1, 10, 0.5), (2, 10, 0.4), (2, 20, 0.6)]


def test_reports_that_are_noted_at_once_are_those_that_optuna_would_note(
    db: Database, study: StudyRecord
) -> None:
    storage = studies.open_optuna_storage(db)
    values = [0.25, math.inf, -math.inf, math.nan]
    one, other = (storage.create_new_trial(study.optuna_study_id) for _ in range(2))
    add_reports(storage, [(one, step, value) for step, value in enumerate(values)])
    for step, value in enumerate(values):
        storage.set_trial_intermediate_value(other, step, value)
    add_reports(storage, [(one, 0, 0.5), (one, 9, 1.0)])  # another runner was first with step 0
    add_reports(storage, [])
    found, expected = (storage.get_trial(each).intermediate_values for each in (one, other))
    assert found.pop(9) == 1.0
    assert repr(found) == repr(expected)


FLOATS = [0.1 + 0.2, 5e-324, 1.7976931348623157e308, -0.0, math.pi, math.nan, math.inf, -math.inf]


def equal(a: float | None, b: float | None) -> bool:
    return a is not None and b is not None and (a == b or (math.isnan(a) and math.isnan(b)))


def test_every_float_comes_back_from_every_database(db: Database, study: StudyRecord) -> None:
    claim = start(db, study)
    for index, number in enumerate(FLOATS):
        changes: dict[str, Any] = dict.fromkeys(
            ("train_loss", "learning_rate", "gradient_norm", "update_ratio", "seconds", "epoch"),
            number,
        )
        if not math.isfinite(number):
            changes["epoch"] = 1.0
        metrics = {"accuracy": number, "loss": number}
        claims.record_evaluation(db, claim, rung(index + 1, metrics=metrics, **changes))
    for number, row in zip(FLOATS, reads.evaluation_rows(db, study.name), strict=True):
        for found in (
            row.train_loss,
            row.validation_loss,
            row.learning_rate,
            row.gradient_norm,
            row.update_ratio,
            row.seconds,
            row.metrics["accuracy"],
        ):
            assert equal(found, number), (number, row)


@pytest.mark.parametrize("value", [math.inf, -math.inf, 1e-300])
def test_every_value_comes_back(db: Database, study: StudyRecord, value: float) -> None:
    claims.end(db, start(db, study), outcome(value=value), now=NOW)
    assert only_ended(db, study).value == value


def test_an_ended_trial_says_all_that_its_outcome_said(db: Database, study: StudyRecord) -> None:
    claim = start(db, study)
    claims.record_evaluation(db, claim, rung(40, 0.7))
    claims.add_error(db, claim, "first\nattempt")
    told = outcome(
        "early_stopped",
        0.8,
        note="no better for 3 rungs",
        test_metrics={"accuracy": math.nan},
        flags=["overfitting since 40 %"],
    )
    ended = claims.end(db, claim, told, now=NOW)
    assert only_ended(db, study).id == ended.id
    for name in ("reason", "note", "value", "metrics", "best_progress", "steps", "horizon"):
        assert getattr(ended, name) == told[name], name
    for name in ("seconds", "peak_memory", "samples_per_second", "checkpoint", "flags"):
        assert getattr(ended, name) == told[name], name
    assert math.isnan(ended.test_metrics["accuracy"])
    assert (ended.state, ended.number, ended.attempts) == ("COMPLETE", 0, 1)
    assert (ended.last_progress, ended.last_value) == (40, 0.7)
    assert ended.params == {"learning_rate": 0.01, "optimizer": "sgd"}
    assert ended.config == (claim.config.model_dump(mode="json") if claim.config else None)
    assert ended.seed == (claim.config.seed if claim.config else None)
    assert ended.error == "attempt 1: first\nattempt"


@pytest.mark.parametrize(("reason", "state"), STATE_OF_REASON.items())
def test_every_reason_has_a_state_of_optuna(
    db: Database, study: StudyRecord, reason: str, state: str
) -> None:
    value = 0.5 if state == "COMPLETE" else None
    claims.end(db, start(db, study), outcome(reason, value), now=NOW)
    assert (only_ended(db, study).reason, only_ended(db, study).state) == (reason, state)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"reason": "bored"}, "reason 'bored' is none of completed"),
        ({"value": None}, "needs a value"),
        ({"value": math.nan}, "needs a value"),
    ],
)
def test_an_outcome_that_optuna_would_refuse_is_refused(
    db: Database, study: StudyRecord, changes: dict[str, Any], message: str
) -> None:
    claim = start(db, study)
    with pytest.raises(ValueError, match=message):
        claims.end(db, claim, outcome(**changes), now=NOW)
    assert claims.untold(db, study.id) == []


def test_a_trial_ends_once(db: Database, study: StudyRecord) -> None:
    claim = start(db, study)
    claims.end(db, claim, outcome(value=0.5), now=NOW)
    again = claims.end(db, claim, outcome(value=0.6), now=NOW)
    assert again.value == 0.5  # The same claim, asked again: no change.
    assert only_ended(db, study).value == 0.5
    with pytest.raises(LeaseLostError):
        claims.record_evaluation(db, claim, rung())
    assert claims.release(db, claim) is False


def test_the_errors_of_all_attempts_are_kept(db: Database, study: StudyRecord) -> None:
    claim = start(db, study)
    claims.add_error(db, claim, "Traceback\n  out of \x00 luck \ud800\n")
    again = begin(db, study, claim)
    claims.add_error(db, again, "killed by signal 9")
    claims.end(db, again, outcome("crashed", None), now=NOW)
    error = only_ended(db, study).error or ""
    first, second = error.split("\n\n")
    assert first.startswith("attempt 1: Traceback\n  out of \ufffd luck")
    assert second == "attempt 2: killed by signal 9"


def test_long_texts_fit_every_database(db: Database, study: StudyRecord) -> None:
    claim = start(db, study)
    claims.add_error(db, claim, "é" * 90_000 + " the cause")
    claims.end(db, claim, outcome(flags=["x" * 70_000], note="n" * 200_000), now=NOW)
    ended = only_ended(db, study)
    assert (ended.error or "").endswith("the cause")
    assert len(ended.error or "") > 90_000
    assert ended.flags == ["x" * 70_000]
    assert len(ended.note or "") == 100_003


def test_an_equal_configuration_is_found_once_it_is_usable(
    db: Database, study: StudyRecord
) -> None:
    def find(params: dict[str, Any]) -> int | None:
        claim = begin(db, study, take(db, study), params)
        assert claim.config is not None
        found = claims.find_duplicate(db, study.id, claim.config.fingerprint())
        return None if found is None else found.number

    params = {"learning_rate": 0.1, "optimizer": "sgd"}
    finish(db, study, start(db, study, params), outcome("crashed", None))
    assert find(params) is None
    running = start(db, study, params)
    assert find(params) is None
    finish(db, study, running, outcome("completed", 0.7))
    finish(db, study, start(db, study, params), outcome("duplicate", 0.7))
    assert find(params) == 1
    other = {**params, "learning_rate": 0.2}
    assert find(other) is None
    cut = start(db, study, other)
    finish(db, study, cut, outcome("pruned", 0.3))
    assert find(other) == cut.number


def test_a_removed_checkpoint_is_forgotten(db: Database, study: StudyRecord) -> None:
    for _ in range(2):
        finish(db, study, start(db, study), outcome())
    start(db, study)
    first, second = checkpoints.kept_checkpoints(db, study.id)
    assert (first.number, first.state, first.value, second.number) == (0, "COMPLETE", 0.9, 1)
    checkpoints.forget_checkpoint(db, first)
    assert checkpoints.kept_checkpoints(db, study.id) == [second]
    assert [row.checkpoint is None for row in reads.trial_rows(db, study.name)[:2]] == [True, False]


def test_optuna_is_told_once(db: Database, study: StudyRecord) -> None:
    for value in (0.1, 0.2):
        claims.end(db, start(db, study), outcome(value=value), now=NOW)
    first, second = claims.untold(db, study.id)
    assert (first.value, second.value) == (0.1, 0.2)
    claims.mark_told(db, first)
    assert claims.untold(db, study.id) == [second]
    claims.mark_told(db, second)
    assert claims.untold(db, study.id) == []


def test_the_attributes_of_a_trial_are_strict_json_of_bounded_size(
    db: Database, study: StudyRecord
) -> None:
    claim = start(db, study)
    result = outcome(metrics={"accuracy": math.nan}, note="n" * 70_000, checkpoint=None)
    claims.end(db, claim, result, now=NOW)
    marks = trial_attributes(only_ended(db, study))
    assert marks[attributes.METRICS] == {"accuracy": "NaN"}
    assert marks[attributes.CONFIG]["training"]["learning_rate"] == 0.01
    assert (marks[attributes.REASON], marks[attributes.SEED]) == ("completed", claim.config.seed)  # type: ignore[union-attr]
    assert attributes.NOTE not in marks
    assert attributes.CHECKPOINT not in marks


@settings(
    max_examples=15,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(said=st.text(max_size=40))
@example(said="a\x00b")
@example(said="half a pair: \ud800")
@example(said="\U0001f600 'quoted' \\ %s :name")
def test_any_text_can_be_said_of_a_trial(db: Database, study: StudyRecord, said: str) -> None:
    claim = take(db, study)
    claims.end(db, claim, outcome("stopped", None, note=said, checkpoint=said), now=NOW)
    assert (
        claims.untold(db, study.id)[-1].note
        == said.replace("\x00", "\ufffd").encode("utf-8", "replace").decode()
    )


def test_a_row_of_a_deleted_trial_cannot_be_referred_to(db: Database, study: StudyRecord) -> None:
    from sqlalchemy.exc import IntegrityError

    with pytest.raises(IntegrityError), db.transaction() as connection:
        connection.execute(
            text("INSERT INTO sft_evaluations (trial_id, progress, metrics_json) VALUES (9, 1, '')")
        )
