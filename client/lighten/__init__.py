"""Lighten's SDK."""
