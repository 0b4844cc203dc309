"""The gRPC edge: thin servicers, validation, interceptors, the one error table."""
