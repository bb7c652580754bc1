"""Pure tensor functions of the engine: kernels, each beside its PyTorch reference. Depends on torch alone.

Every public function that has a kernel takes `backend`: "torch" runs the fp32 reference, which is also the CPU path,
"triton" the kernel in `samkv_kernels.jit`, "numba" that in `samkv_kernels.cpu`. `samkv_kernels.backend` decides between
them, once for a model.
"""
