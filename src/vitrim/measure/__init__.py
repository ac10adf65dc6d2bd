"""FLOPs, throughput and memory of dense and reduced models."""
