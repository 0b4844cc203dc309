"""Reading models from files. Nothing here executes what a caller sends."""
