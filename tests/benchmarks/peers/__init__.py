"""What takes part in the comparison with peers. Each module is a program that runs in a process of
its own: those with a peer's name in the peers' environment, the others in Lighten's.
"""
