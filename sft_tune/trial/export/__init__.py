"""Fine-tuned weights in their library's own format, and the proof that they are the same there."""
