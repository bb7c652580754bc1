"""Pure tensor functions of the engine: Triton kernels, each beside its PyTorch reference. Knows torch and nothing else."""
