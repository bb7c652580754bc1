"""Pure tensor functions of the engine: Triton kernels, each beside its PyTorch reference. Knows torch, nothing else."""
