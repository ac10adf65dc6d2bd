"""Parameter-efficient fine-tuning, one file per method."""
