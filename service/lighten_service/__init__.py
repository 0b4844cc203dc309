"""Lighten's service: the control plane and its workers."""
