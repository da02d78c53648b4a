"""The sections `resources` and `storage` of the study file: where trials run and results lie."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from sft_tune.spec.section import Section


class ResourcesSpec(Section):
    """Where trials run, and what they may keep."""

    engine: Literal["local", "ray"] = Field(
        "local",
        description="What places the workers: local (processes of this machine) or ray (actors "
        "of a Ray cluster; `--ray-address` joins one, else a local one is started).",
    )
    workers: int | None = Field(
        None,
        ge=1,
        description="With `engine: ray`: how many workers to ask Ray for. Default: as many as the "
        "cluster has room for at the start; more wait for it to grow.",
    )
    devices: Literal["auto", "cpu"] | tuple[int, ...] = Field(
        "auto",
        description="auto (every GPU where there is one, else the CPU), cpu, or "
        "a list of GPU numbers.",
    )
    trials_per_device: int | None = Field(
        None,
        ge=1,
        description="Trials at once on each GPU, or on the CPU. Default: 1 on a GPU, or as many as "
        "memory_per_trial admits; on the CPU what a short measurement finds fastest.",
    )
    threads_per_trial: int | None = Field(
        None, ge=1, description="CPU threads of a trial. Default: all cores, shared evenly."
    )
    memory_per_trial: float | None = Field(
        None,
        gt=0,
        description="GiB that a trial needs, of the GPU (0.6 of CUDA's own among them) or (on the "
        "CPU) of the machine: no more trials run at once than it holds.",
    )
    stall_minutes: float = Field(
        30.0,
        gt=0,
        description="A trial that reports nothing for so long, not even a step, is killed and "
        "started again from its last checkpoint.",
    )
    grace_seconds: float = Field(
        25.0,
        gt=0,
        description="After SIGTERM trials have so long to save a checkpoint; then they are killed.",
    )
    checkpoint_seconds: float = Field(
        30.0,
        ge=0,
        description="After a rung, once it is on record, save what a resume needs when this much "
        "time has passed since the last save; 0: after every one.",
    )
    max_attempts: int = Field(
        3,
        ge=1,
        description="A trial whose worker or runner dies is started so many times from the same "
        "rung; one that got further in between goes on being started.",
    )
    keep_checkpoints: int = Field(
        5, ge=1, description="Best checkpoints that stay on disk, one a trial."
    )
    evaluation_batch_size: int = Field(
        256, ge=1, description="Batch size of evaluation (no effect on the numbers but rounding)."
    )
    feature_cache: bool = Field(
        True,
        description="With `freeze: backbone` and nothing random before the head, and where "
        "head_first or gradual train the head alone: compute what the backbone makes of each "
        "example once, keep it with the prepared data, and train the heads of all trials on it (no "
        "effect on the numbers but rounding).",
    )
    compile: bool | Literal["auto"] = Field(
        False,
        description="Train through `torch.compile` (needs a C++ compiler on the CPU): true, or "
        "auto, where a trial's steps save more time than the compilation takes. That is measured "
        "on this machine once trials of the same model, data and batch size have come to ten "
        "minutes together. On a GPU whole batches of images are replayed as CUDA graphs, where "
        "nothing is drawn (dropout) and loss and gradient come out the same. Where it fails the "
        "trial goes on without, and says so (no effect on the numbers but rounding).",
    )
    stack: Literal["auto", "off"] | Annotated[int, Field(ge=2, le=64)] = Field(
        "auto",
        description="Trials that train as one on each slot: heads where `feature_cache` applies, "
        "and whole models without dropout, augmentation and `compile`. The space has only "
        "settings that each may have for itself: learning rate and schedule, epochs, batch size, "
        "optimizer (adamw, adam, sgd) and what belongs to it, clipping, label smoothing, of heads "
        "dropout (no effect on the numbers but rounding; on a GPU dropout draws other masks). "
        "auto: up to 8 in all, or 32 where neither sampler nor pruner learns from trials, where a "
        "short measurement finds that faster; off; or how many. A `worker` does it only with "
        "`--study`.",
    )
    loggers: tuple[Literal["tensorboard", "mlflow", "wandb"], ...] = Field(
        (),
        description="Trackers that each trial is a run in, besides the database: tensorboard "
        "(event files in the trial's folder), mlflow and wandb (where their own environment "
        "variables say).",
    )


class StorageSpec(Section):
    """Where results are kept. Relative paths are relative to the study file."""

    url: str | None = Field(
        None,
        description="Database: sqlite:///file.db, postgresql://..., mysql://... Default: "
        "--storage, then SFT_TUNE_STORAGE, then sqlite:///sft_tune.db in the working directory.",
    )
    artifacts: str | None = Field(
        None,
        description="Where checkpoints and logs go: a folder, or a URL that fsspec knows (s3://, "
        "gs://, sftp://, ...) for machines that share no folder. Default: sft_tune_runs beside "
        "the SQLite file, else in the working directory.",
    )
