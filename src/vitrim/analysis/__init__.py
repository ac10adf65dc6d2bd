"""Pictures and numbers about what a reduction does."""
