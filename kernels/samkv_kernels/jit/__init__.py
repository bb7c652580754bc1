"""The Triton kernels, imported only where they run; every module has its counterpart one folder up."""
