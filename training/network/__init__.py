"""The forecaster: its inputs, cells, weights, compiled kernels, and versions on disk. Knows nothing of learning."""
