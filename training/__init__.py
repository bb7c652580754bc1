"""How the bundled reader is made: tokenizer, data, training, evaluation, export. See `training/README.md`."""
