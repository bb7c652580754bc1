"""Errors that a user can act on: each message is a sentence that names the remedy."""

from __future__ import annotations


class SamKVError(Exception):
    """Base of the errors that the user can fix; its text can be shown unchanged."""


class UnsupportedModel(SamKVError):
    """The model cannot be served exactly; the text says why and what to do."""


class ParityError(SamKVError):
    """The self-check found that reuse is not exact on this model."""
