"""Reduced models as files that run without this library: ONNX, and programs of ``torch.export``."""
