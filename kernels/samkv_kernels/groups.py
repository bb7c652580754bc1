"""The sizes of what is packed into four bits, for the reference and the kernels."""

GROUP = 32
"""Neighbouring tokens whose keys share the scales of their channels. With 128 a small model lost half as much again."""
HALF = GROUP // 2
"""The tokens of a group that lie in low bits; the others lie in the high bits of the same bytes."""
MOST = 15
"""The largest integer of four bits."""
