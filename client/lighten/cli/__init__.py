"""The `lighten` command."""
