"""What is allowed and surely not meant; known only when the data has been looked at."""

from __future__ import annotations

from sft_tune.spec.study import StudySpec
from sft_tune.spec.wording import shown


def idle_batch_sizes(spec: StudySpec, examples: int) -> str | None:
    """Return what to say of batch sizes above the number of training ``examples``; None: none is.

    They all do the same: one step an epoch, over all examples.
    """
    if spec.training.batch_tokens is not None or "batch_tokens" in spec.space:
        return None
    place, remedy = "space.batch_size", f"leave out what is above {examples}"
    parameter = spec.space.get("batch_size")
    if parameter is None:
        sizes = [spec.training.batch_size]
        place, remedy = "training.batch_size", f"write {examples} or less"
    elif parameter.values is not None:
        sizes = [size for size in parameter.values if isinstance(size, int)]
    else:
        sizes = [int(parameter.bounds()[1])]
        remedy = f"lower `high` to {examples}"
    above = [shown(size) for size in sizes if size > examples]
    if not above:
        return None
    return (
        f"{place}: sizes above the {examples} training examples all do the same one step an epoch, "
        f"over all of them; {remedy} (got {', '.join(above)})"
    )
