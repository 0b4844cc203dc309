"""One file a technique. Imported by workers alone."""
