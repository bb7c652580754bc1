"""Kernels for the CPU, compiled by Numba and imported only where they run; each has its counterpart one folder up."""
