"""The pipeline that runs one attempt of one job. Imported by workers alone."""
