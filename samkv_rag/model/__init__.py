"""The model floor: the only room that imports transformers."""
