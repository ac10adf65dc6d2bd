"""One file per token reduction method; the file name is the spec name."""
