"""The network of categorical features, compiled and as torch module, and what its prior learns from."""
