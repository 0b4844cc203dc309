"""How the CLI shows jobs, events and results."""
