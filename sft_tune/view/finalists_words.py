"""What finalists over fresh seeds say, in sentences."""

from __future__ import annotations

from sft_tune.view import words
from sft_tune.view.finalists import SURE, Finalist, Standings, negative
from sft_tune.view.statistics import chance_of_lead


def in_words(found: Standings) -> list[str]:
    """Return what the standings say, a sentence or two a line."""
    lines = [_verdict(found)]
    leader = found.leader
    if found.overtaken:
        lines.append(f"{leads_to(found)}.")
    if leader.to_default is not None:
        lines.append(_to_default(leader, found))
    if (won := found.searched) is not None and won.luck is not None:
        lines.append(_luck(won))
    if not found.has_test:
        lines.append(
            "The data has no test split: all of this is on the validation split that the search "
            "chose by; data.test or data.test_fraction sets one aside."
        )
    for one in found.finalists:
        if one.failed:
            lines.append(
                f"Trial {one.number}: {words.reasons(one.failed)}; its mean is of the other runs."
            )
    if found.open:
        lines.append(
            f"{words.plural(found.open, 'run')} still to end; the same command goes on with them."
        )
    return lines


def leads_to(found: Standings) -> str:
    """Return the commands that show the leader, and export it where its weights are kept."""
    number, study = found.leader.number, found.study
    told = f"`sft-tune show {study} {number}` shows trial {number}"
    if found.leader.checkpoint is None:
        return told
    return f"{told}, `sft-tune export {study} DIR --trial {number}` exports it"


def fresh_in_words(found: Standings) -> str:
    """Return what fresh seeds say of the leader, and of the winner of the search if it is not."""
    leader, won = found.leader, found.searched
    told = (
        f"over {words.plural(leader.validation.n, 'fresh seed')} trial {leader.number} leads with "
        f"{words.plus_minus(leader.validation)}"
    )
    if leader.chance is not None and len(found.finalists) > 1:
        told += f" (the best of {len(found.finalists)} with {words.chance(leader.chance)})"
    if won is None or won is leader:
        return told
    return f"{told}, trial {won.number} has {words.plus_minus(won.validation)}"


def leader_in_words(found: Standings) -> str:
    """Return which trial leads in place of the winner of the search; empty where it leads."""
    leader = found.leader
    if not found.overtaken:
        return ""
    chance = (
        "" if leader.chance is None else f", the best of them with {words.chance(leader.chance)}"
    )
    mean = words.plus_minus(leader.validation)
    return f"trial {leader.number} leads: {mean}{chance}\n{leads_to(found)}"


def confirmed_in_words(found: Standings) -> str:
    """Return whether the winner of the search is confirmed, and by what; else how to find out."""
    won = found.searched
    if won is None:
        return (
            f"no: the best trial is not among the finalists; `sft-tune confirm {found.study}` "
            "adds it"
        )
    chance = "" if won.chance is None else f", the best of them with {words.chance(won.chance)}"
    test = "" if won.test is None else f", {words.plus_minus(won.test)} on test"
    seeds = words.plural(won.validation.n, "fresh seed")
    told = f"{words.plus_minus(won.validation)} over {seeds}{test}"
    return f"{'yes' if found.confirmed else 'no'}: {told}{chance}"


def _verdict(found: Standings) -> str:
    leader = found.leader
    if len(found.finalists) < 2:
        return f"Trial {leader.number} is the only finalist."
    if leader.chance is None:
        return "Of one seed each nothing is known about chance; give --seeds 2 or more."
    told = (
        f"Trial {leader.number} is the best of the {len(found.finalists)} with a probability of "
        f"{words.chance(leader.chance)}"
    )
    if found.confirmed:
        return f"Confirmed: {told[0].lower()}{told[1:]}."
    if found.overtaken:
        return f"{told}; the search had chosen trial {found.winner}."
    return f"{told}: not enough to call it confirmed ({SURE:.0%}); more seeds may."


def _to_default(leader: Finalist, found: Standings) -> str:
    parts = [f"{words.signed(leader.to_default)} on validation"]
    if leader.test_to_default is not None:
        parts.append(f"{words.signed(leader.test_to_default)} on test")
    difference = leader.to_default
    if difference is not None and not found.maximize:
        difference = negative(difference)
    # Of two, the verdict has said it.
    chance = None if difference is None or len(found.finalists) == 2 else chance_of_lead(difference)
    sure = "" if chance is None else f"; better with a probability of {words.chance(chance)}"
    return f"Trial {leader.number} against the default, seed by seed: {', '.join(parts)}{sure}."


def _luck(won: Finalist) -> str:
    if won.luck is None:
        return ""
    told = (
        f"The search scored trial {won.number} {words.score(won.search)}, fresh seeds "
        f"{words.score(won.validation.mean)} on average: "
    )
    if won.luck.low is not None and won.luck.low > 0:
        return told + (
            f"{words.signed(won.luck)} of it was luck (the best of many noisy scores is too good: "
            "selection bias)."
        )
    return told + f"its luck of {words.signed(won.luck)} is within chance."
