"""What people look at: tables, the live screen, the dashboard. Reads through the store."""
