"""Pure tensor functions of the engine: Triton kernels, each beside its PyTorch reference. Depends on torch alone.

Every public function that has a kernel takes `backend`: "torch" runs the fp32 reference, which is also the CPU path,
"triton" the kernel in `samkv_kernels.jit`. `samkv_kernels.backend` decides between them, once, for the whole program.
"""
