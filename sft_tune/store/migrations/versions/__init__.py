"""One module a revision. What one says is frozen: later changes are later revisions."""
