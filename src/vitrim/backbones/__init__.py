"""One file per model library: how its vision transformers are read and cut."""
