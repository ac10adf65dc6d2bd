"""Whether the pretrained weights of a timm model can be had here."""

from __future__ import annotations

import os
import socket
from typing import Any


def refuse_unreachable(key: str) -> None:
    """Fail at once where the hub has no address; its client would retry for most of a minute.

    Raises:
        ValueError: when there are no pretrained weights, or no way to them.
    """
    import timm
    from huggingface_hub import constants, try_to_load_from_cache

    config: Any = timm.get_pretrained_cfg(key)
    if config is None or not config.has_weights:
        raise ValueError(no_pretrained(key, "timm has none for this model"))
    proxied = any(os.environ.get(v) for v in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy"))
    if not config.hf_hub_id or proxied:
        return
    for file in ("model.safetensors", "pytorch_model.bin"):
        if isinstance(try_to_load_from_cache(config.hf_hub_id, file), str):
            return
    host = constants.ENDPOINT.split("://")[-1].split("/")[0].split(":")[0]
    try:
        socket.getaddrinfo(host, 443)
    except OSError as error:
        raise ValueError(no_pretrained(key, f"{host} cannot be reached ({error.strerror or error})")) from error


def no_pretrained(key: str, why: str) -> str:
    """The message for a timm model whose pretrained weights cannot be had, with what to do."""
    return (
        f"no pretrained weights for timm/{key}: {why}. Download model.safetensors of timm/{key} from huggingface.co elsewhere "
        "and pass --weights FILE, or use --random-weights for timings and pictures without meaningful predictions"
    )
