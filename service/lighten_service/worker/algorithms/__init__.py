"""Algorithms on quantized models, the same for both engines."""
