"""Which node needs which cache: owners in the KV store, so that the record outlives the process."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from urllib.parse import quote

from llama_index.core.schema import BaseNode

from llama_index.llms.samkv.nodes import ModeName, text_of_node
from samkv_rag import SamKVEngine
from samkv_rag.engines import space_of

Entry = tuple[str, str]
"""An owner and the key of a cache that it needs."""


class Ledger:
    """The ledger of one collection. A node's owner is named `llama_index/<collection>/<document>/<node>`, and in other
    namespaces than the default `llama_index/%n<namespace>/<collection>/...`: tenants may have the same ids."""

    def __init__(self, engine: SamKVEngine, collection: str, mode: ModeName, metadata_key: str | None) -> None:
        self._engine = engine
        self._store = engine.store
        self._root = f"llama_index/{space_of(engine)}{quote(collection, safe='')}/"
        self._mode: ModeName = mode
        self._metadata_key = metadata_key

    def owner(self, node: BaseNode) -> str:
        return f"{self._document(node.ref_doc_id or '')}{quote(node.node_id, safe='')}"

    def _document(self, ref_doc_id: str) -> str:
        return f"{self._root}{quote(ref_doc_id, safe='')}/"

    # -- adding nodes ------------------------------------------------------------------------------------------

    def enter(self, nodes: Sequence[BaseNode]) -> dict[Entry, bool]:
        """Store the nodes' caches and make the nodes their owners; returns each entry, and whether it is new.

        Owners are stored before caches, so that a cache which is deleted meanwhile is made again. If that fails,
        nothing is left behind.
        """
        texts = {self.owner(node): text_of_node(node, self._mode, self._metadata_key) for node in nodes}
        pairs = [(owner, key) for owner, text in texts.items() for key in self._engine.keys([text] if text else [])]
        known = {entry for owner in {self._parent(owner) for owner in texts} for entry in self._store.owned(owner)}
        entered = {entry: entry not in known for entry in pairs}
        entered.update(dict.fromkeys(((owner, "") for owner in texts.keys() - dict(pairs).keys()), False))
        try:
            for owner, key in pairs:
                self._store.retain(key, owner)
            self._engine.precompute([texts[owner] for owner, _ in pairs])
        except BaseException:
            self.undo(entered)
            raise
        return entered

    def settle(self, entered: dict[Entry, bool]) -> None:
        """After the nodes were added, release what they owned before under the same ids and no longer need."""
        owners = {owner for owner, _ in entered}
        for parent in {self._parent(owner) for owner in owners}:
            self._release(entry for entry in self._store.owned(parent) if entry[0] in owners and entry not in entered)

    def undo(self, entered: dict[Entry, bool]) -> None:
        """If the nodes could not be added, release what was new."""
        self._release(entry for entry, new in entered.items() if new)

    # -- removing nodes ----------------------------------------------------------------------------------------

    def leave_document(self, ref_doc_id: str) -> None:
        """Release what the nodes of a document owned."""
        self._release(self._store.owned(self._document(ref_doc_id)))

    def leave_nodes(self, node_ids: Iterable[str]) -> None:
        """Release what these nodes owned."""
        gone = {quote(node_id, safe="") for node_id in node_ids}
        if gone:
            self._release(entry for entry in self._store.owned(self._root) if entry[0].rpartition("/")[2] in gone)

    def leave_all(self) -> None:
        """Release what the collection owned."""
        self._release(self._store.owned(self._root))

    def _release(self, entries: Iterable[Entry]) -> None:
        ended = [key for owner, key in entries for key in self._store.release(owner, [key])]
        if ended:
            self._engine.forget(ended)

    @staticmethod
    def _parent(owner: str) -> str:
        return owner.rpartition("/")[0] + "/"
