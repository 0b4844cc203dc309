"""The domain: jobs, their rules, and the ports they need. Standard library and messages alone."""
