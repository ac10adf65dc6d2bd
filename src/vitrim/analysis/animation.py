"""Pages as the frames of a GIF or an MP4 file."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from vitrim.analysis.sheet import Page

FORMATS = (".gif", ".mp4")
_RATE = 30  # pictures per second of a video


def save_animation(pages: Sequence[Page], path: str | Path, *, seconds: float = 0.6, dpi: int | None = None) -> None:
    """Write pages one after the other, each for ``seconds``, the last one three times as long.

    Args:
        pages: of one size.
        path: a ``.gif`` (repeats for ever), or an ``.mp4`` (H.264, by the program ffmpeg).
        seconds: of each page.
        dpi: dots per inch; those of the pages when None.

    Raises:
        ValueError: for another ending, without pages, or when ffmpeg fails.
        FileNotFoundError: for MP4 without ffmpeg.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise ValueError(f"animations are written as .gif or .mp4; got '{path.name}'")
    if not pages or seconds <= 0:
        raise ValueError("an animation needs pages, and more than 0 seconds for each")
    program = require_ffmpeg() if path.suffix.lower() == ".mp4" else ""
    frames = _frames(pages, dpi)
    if program:
        _write_video(program, frames, path, seconds)
        return
    # One palette for all frames: colours that stay must not flicker.
    wide = Image.new("RGB", (frames[0].width, sum(frame.height for frame in frames)))
    for i, frame in enumerate(frames):
        wide.paste(frame, (0, i * frame.height))
    palette = wide.quantize(256, dither=Image.Dither.NONE)
    drawn = [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    times = [round(1000 * seconds)] * (len(drawn) - 1) + [round(3000 * seconds)]
    drawn[0].save(path, save_all=True, append_images=drawn[1:], duration=times, loop=0, optimize=True)


def require_ffmpeg() -> str:
    """Path of ffmpeg.

    Raises:
        FileNotFoundError: when it is not there.
    """
    found = shutil.which("ffmpeg")
    if found is None:
        raise FileNotFoundError("MP4 needs the program ffmpeg, which is not on the PATH; install it, or write a .gif")
    return found


def _frames(pages: Sequence[Page], dpi: int | None) -> list[Image.Image]:
    """The pages as pixels, on white of the size of the largest."""
    from dataclasses import replace

    frames = [(page if dpi is None else replace(page, dpi=dpi)).image() for page in pages]
    # Even numbers, as video formats ask for.
    width, height = (-(-max(frame.size[i] for frame in frames) // 2) * 2 for i in (0, 1))
    whole: list[Image.Image] = []
    for frame in frames:
        ground = Image.new("RGB", (width, height), "white")
        ground.paste(frame, (0, 0))
        whole.append(ground)
    return whole


def _write_video(program: str, frames: Sequence[Image.Image], path: Path, seconds: float) -> None:
    size = f"{frames[0].width}x{frames[0].height}"
    command = [
        program,
        "-y",
        "-loglevel",
        "error",
        "-f",
        "rawvideo",
        "-pix_fmt",
        "rgb24",
        "-s",
        size,
        "-r",
        str(_RATE),
        "-i",
        "-",
    ]
    command += ["-an", "-c:v", "libx264", "-crf", "16", "-pix_fmt", "yuv420p", "-movflags", "+faststart", str(path)]
    repeats = [max(round(_RATE * seconds), 1)] * (len(frames) - 1) + [max(round(3 * _RATE * seconds), 1)]
    pixels = b"".join(frame.tobytes() * count for frame, count in zip(frames, repeats, strict=True))
    done = subprocess.run(command, input=pixels, capture_output=True, check=False)
    if done.returncode:
        reason = done.stderr.decode(errors="replace").strip().splitlines()
        raise ValueError(f"ffmpeg cannot write '{path}': {reason[-1] if reason else 'no reason given'}; write a .gif instead")
