"""The `lighten` command."""

import os

# Before gRPC is imported: it would tell the terminal of every handshake that it tries again.
os.environ.setdefault("GRPC_VERBOSITY", "ERROR")
