"""Hyperparameter optimization for supervised fine-tuning."""
