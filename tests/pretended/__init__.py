"""A GPU pretended on a CPU: its tensors say that they are on `cuda:0`, and what a GPU refuses is refused.

It has no speed and no kernels of CUDA's own. What it shows, without a GPU: tensors of two devices in one operation,
memory that is not pinned where a GPU reads it, operations for which the host waits (an error within
`torch.cuda.set_sync_debug_mode("error")`, and while a graph is recorded), and graphs that miss what the host does: a
recorded graph runs the same operations again on the same memory, and nothing else. Triton's kernels are interpreted
(TRITON_INTERPRET=1). Streams are not told apart: one that waits for too little is not found.

`install()` changes torch for the rest of the process, so tests that use it take one of their own.
"""
