"""Generated tasks: endless, seeded, with names that no training world holds. To add one: a line in `TASKS`."""

from __future__ import annotations

from collections.abc import Mapping

from samkv_rag.eval.tasks import comparison, listing, needle, worlds
from samkv_rag.eval.tasks.filling import ChunkSize
from samkv_rag.eval.tasks.task import Task

_ALL = (
    Task(
        "one_hop",
        "Nothing has to cross: one chunk states the answer and names its subject. The task measures selection.",
        worlds.generator("one_hop"),
    ),
    Task(
        "earlier_chunk",
        'The subject: the chunk that states the answer says "the company" or "she"; only an earlier chunk says who.',
        worlds.generator("earlier_chunk"),
        least_chunks=2,
    ),
    Task(
        "two_hop",
        "The bridge: one chunk names the thing that another chunk describes. Chunks that do not see each other leave "
        "the join to the question's own tokens, which are always computed fresh.",
        worlds.generator("two_hop"),
        least_chunks=2,
    ),
    Task(
        "unanswerable",
        "Nothing has to cross: no chunk says it, and the right answer is to say so.",
        worlds.generator("unanswerable"),
    ),
    Task(
        "comparison",
        "The comparison: two chunks state one number each. The question's tokens see both, so chunks that do not see "
        "each other cost little unless a subject is named elsewhere.",
        comparison.generate,
        least_chunks=2,
    ),
    Task(
        "listing",
        "The completeness of the list: its members stand in several chunks, and the answer's tokens collect them. "
        "Chunks need each other only where a subject is named elsewhere.",
        listing.generate,
        answer_tokens=48,
        least_chunks=2,
    ),
    Task(
        "needle",
        "Nothing has to cross: one sentence in long chunks names its subject. The task measures selection.",
        needle.generate,
        margin=2.0,
    ),
)

TASKS: Mapping[str, Task] = {task.name: task for task in _ALL}
"""Generated tasks by name, in the order in which a report shows them."""

__all__ = ["TASKS", "ChunkSize", "Task"]
