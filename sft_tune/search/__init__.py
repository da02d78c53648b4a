"""From a study file to Optuna: distributions, samplers, pruners."""
