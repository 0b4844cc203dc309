"""Real models quantized by Lighten and its peers, judged with and without VNNI.

Modules that run in the peers' environment or in an emulator import nothing of Lighten's.
"""
