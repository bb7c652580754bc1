"""The errors a user can act on: each message is a sentence that names the remedy."""

from __future__ import annotations


class SamKVError(Exception):
    """Base of the errors that are the user's to mend; its text is fit to be shown as it stands."""


class UnsupportedModel(SamKVError):
    """The model cannot be served exactly; the text says why and what to do."""


class ParityError(SamKVError):
    """The self check found that reuse is not exact on this model."""
