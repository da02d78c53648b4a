"""One fine-tuning run: data, model, optimizer, schedule, loop, checkpoints. Owns torch."""
