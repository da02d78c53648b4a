"""The study database: every write and every read."""
