"""What a user would run instead of `sft_tune`, as its documentation shows: whole programs.

Each is `python -m tests.benchmarks.rivals.NAME FOLDER`: it reads `FOLDER/work.json` (see
`tests.benchmarks.work`), trains one model a learning rate, and writes the validation accuracies
in the order of the learning rates to `FOLDER/NAME.json`.
"""
