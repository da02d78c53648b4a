"""The program's door: run a study, open one, and use what it found.

The work is done by other processes (`python -m sft_tune.run.worker`), so a script needs no
``if __name__ == "__main__"`` guard, and the process that calls `tune` never imports torch.
"""

from __future__ import annotations

from sft_tune.api.best import Best
from sft_tune.api.doors import compare, open_study, tune
from sft_tune.api.study import Study

__all__ = ["Best", "Study", "compare", "open_study", "tune"]
