"""ONNX graphs as data: saving, counting, and reading and cleaning quantized ones."""
