"""A real Kubernetes on this machine for tests: control plane, a node, and fake nodes for scale.

Nothing here mocks: the programs are the real ones, built once from Go modules (``build``).
"""
