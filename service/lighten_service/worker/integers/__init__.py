"""What integer kernels make of 8-bit weights on CPUs that add products in 16 bits."""
