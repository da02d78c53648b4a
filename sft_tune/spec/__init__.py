"""What a study file says: frozen pydantic models; no torch, no Optuna, no SQL."""
