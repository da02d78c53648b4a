"""Where search, store and trial meet: slots, workers, the dispatcher."""
