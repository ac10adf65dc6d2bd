"""Fine-grained recognition, one file per recogniser."""
