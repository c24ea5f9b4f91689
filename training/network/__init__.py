"""The forecaster: inputs, cells, attention, weights and files, compiled kernels, and the registry of versions.

`model.Forecaster` is the torch module, `kernels.Network` the same equations compiled for a CPU. Only `model` and
`cells` import torch. Knows nothing of training.
"""
