"""Any order of claiming, renewing, releasing, ending and letting time pass keeps the rules."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import func, select

from sft_tune.store import claims, leases
from sft_tune.store.claims import Claim, LeaseLostError
from sft_tune.store.database import Database
from sft_tune.store.tables import studies, trials
from tests.store.conftest import LEASE, make_spec, outcome, register

LIMIT = 4
_names = (f"leases-{count}" for count in itertools.count())


@dataclass
class Held:
    """What the rules say of a ticket."""

    token: str
    owner: str | None
    expires: float
    ended: bool = False


class Runners(RuleBasedStateMachine):
    db: Database
    claimed: Bundle[Claim] = Bundle("claimed")
    owners = st.sampled_from(["a", "b", "c"])

    def __init__(self) -> None:
        super().__init__()
        self.study = register(self.db, make_spec(next(_names)))
        self.now = 1000.0
        self.tickets: dict[int, Held] = {}

    @rule(target=claimed, owner=owners)
    def claim_new(self, owner: str) -> object:
        owner = self.named(owner)
        claim = claims.claim_new(
            self.db, self.study.id, owner=owner, now=self.now, lease_seconds=LEASE, limit=LIMIT
        )
        assert (claim is None) == (len(self.tickets) == LIMIT)
        if claim is None:
            return multiple()
        assert claim.ordinal == len(self.tickets)
        assert claim.id not in self.tickets
        self.tickets[claim.id] = Held(claim.token, owner, self.now + LEASE)
        return claim

    @rule(target=claimed, owner=owners, dead=st.sets(owners))
    def claim_abandoned(self, owner: str, dead: set[str]) -> object:
        owner, dead = self.named(owner), {self.named(one) for one in dead}
        claim = claims.claim_abandoned(
            self.db,
            self.study.id,
            owner=owner,
            now=self.now,
            lease_seconds=LEASE,
            is_dead=lambda who: who in dead,
        )
        free = [
            row
            for row, held in self.tickets.items()
            if not held.ended
            and (held.owner is None or held.expires <= self.now or held.owner in dead)
        ]
        assert (None if claim is None else claim.id) == (min(free) if free else None)
        if claim is None:
            return multiple()
        assert claim.token != self.tickets[claim.id].token
        self.tickets[claim.id] = Held(claim.token, owner, self.now + LEASE)
        return claim

    @rule(owner=owners)
    def renew(self, owner: str) -> None:
        owner = self.named(owner)
        held = {row for row, one in self.tickets.items() if one.owner == owner and not one.ended}
        assert claims.renew(self.db, owner, self.now, LEASE) == held
        for row in held:
            self.tickets[row].expires = self.now + LEASE

    @rule(seconds=st.sampled_from([1.0, LEASE / 2, LEASE, -LEASE / 2]))
    def pass_time(self, seconds: float) -> None:
        self.now += seconds

    @rule(claim=claimed)
    def write(self, claim: Claim) -> None:
        try:
            claims.add_error(self.db, claim, "x")
        except LeaseLostError:
            assert not self.is_held(claim)
        else:
            assert self.is_held(claim)

    @rule(claim=consumes(claimed))
    def release(self, claim: Claim) -> None:
        held = self.is_held(claim)
        assert claims.release(self.db, claim) is held
        if held:
            self.tickets[claim.id].owner = None
            self.tickets[claim.id].token = "released"

    @rule(owner=owners)
    def begin_anew(self, owner: str) -> None:
        owner = self.named(owner)
        leases.release_all(self.db, owner)
        for ticket in self.tickets.values():
            if ticket.owner == owner and not ticket.ended:
                ticket.owner, ticket.token = None, "released"

    @rule(claim=claimed)
    def end(self, claim: Claim) -> None:
        mine = self.tickets[claim.id].token == claim.token
        try:
            claims.end(self.db, claim, outcome(), now=self.now)
        except LeaseLostError:
            assert not mine
        else:
            assert mine
            self.tickets[claim.id].ended = True

    def named(self, owner: str) -> str:
        """A runner of this study alone: `renew` is for all studies that an owner serves."""
        return f"{self.study.name}/{owner}"

    def is_held(self, claim: Claim) -> bool:
        ticket = self.tickets[claim.id]
        return ticket.token == claim.token and not ticket.ended

    @invariant()
    def the_database_agrees(self) -> None:
        with self.db.reading() as connection:
            issued = connection.execute(
                select(studies.c.issued).where(studies.c.id == self.study.id)
            ).scalar()
            rows, ordinals = connection.execute(
                select(func.count(), func.count(trials.c.ordinal.distinct())).where(
                    trials.c.study_id == self.study.id
                )
            ).one()
        assert issued == rows == ordinals == len(self.tickets) <= LIMIT
        live = {
            one.owner
            for one in self.tickets.values()
            if not one.ended and one.owner is not None and one.expires > self.now
        }
        assert claims.live_owners(self.db, self.study.id, self.now) == live


def test_any_order_of_claims_keeps_the_rules(db: Database) -> None:
    machine = type("RunnersHere", (Runners,), {"db": db})
    run_state_machine_as_test(  # type: ignore[no-untyped-call]
        machine,
        settings=settings(
            max_examples=20 if db.backend == "sqlite" else 5,
            stateful_step_count=25,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],  # Shrinking would take minutes on a database.
            suppress_health_check=list(HealthCheck),
        ),
    )
