"""Large sets in tar shards, read as streams: the WebDataset layout."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from io import BytesIO
from pathlib import Path
from typing import Any

from PIL import Image

from vitrim.data.images import open_image
from vitrim.datasets._fake import CLASSES, TEST, TRAIN, draw
from vitrim.datasets._shards import Members, expand, fetch, positions
from vitrim.datasets._stream import Stream
from vitrim.datasets.base import DATASETS, DataError, DataSet, Item

_INFO = "_info.json"


@DATASETS.register("wds")
class WebDataset(DataSet):
    """Samples in tar files: ``KEY.jpg`` and ``KEY.cls`` next to each other.

    Shards on this machine are read by Python alone; ``http://``, ``s3://``, ``pipe:`` and the like by the library ``webdataset``
    (``pip install vitrim[train]``). Training reads them in one direction, each process and each worker its own stretch, see
    :class:`vitrim.datasets._stream.Stream`.

    Args:
        root: folder of the shards, or the beginning of their addresses.
        urls: names of the shards below ``root``: ``{split}`` stands for the split, ``{0000..0146}`` for numbers, ``*`` for
            anything on this machine.
        train: what ``{split}`` is for the training part.
        val: what it is for the validation part; no validation part when there are no such shards.
        test: what it is for the test part.
        image: endings of the image's member, separated by ``;``.
        label: ending of the label's member, a number or a name; ``json.KEY`` takes it out of a JSON member.
        names: file below ``root`` with the name of a class on each line.
        num_classes: how many classes there are, where no file of names exists and shards are not on this machine.
        multilabel: the label is a list, ``1 3`` or ``[1, 3]``.
    """

    origin = "your own shards; https://huggingface.co/timm has ImageNet in this layout"
    layout = """\
ROOT/train-0000.tar     members KEY.jpg and KEY.cls, a class number from 0
ROOT/val-0000.tar       optional, as is test-0000.tar
ROOT/_info.json         optional: lengths of the shards, as timm writes them; needed for shards that are not on this machine
ROOT/classes.txt        optional: the name of a class on each line"""

    def __init__(
        self,
        *,
        root: str = "",
        urls: str = "{split}-*.tar",
        train: str = "train",
        val: str | None = "val",
        test: str | None = "test",
        image: str = "jpg;jpeg;png;webp",
        label: str = "cls",
        names: str = "classes.txt",
        num_classes: int | None = None,
        multilabel: bool = False,
    ) -> None:
        super().__init__(root=root)
        if not urls.endswith(".tar"):
            raise ValueError(f"urls ends with .tar, as in train-{{0000..0146}}.tar; got {urls}")
        self.urls, self.train, self.val, self.test = urls, train, val, test
        self.image, self.label, self.names, self.num_classes = image, label, names, num_classes
        # A property of each set, where other families have it in their class.
        self.multilabel = multilabel  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def splits(self) -> tuple[str, ...]:
        if "{split}" not in self.urls and not self._info:
            return ("train",)
        return ("train", *(name for name in ("val", "test") if getattr(self, name) and self.shards(name)))

    def split(self, name: str) -> Any:
        """A split as a stream, a :class:`~vitrim.datasets._stream.Stream`."""
        return Stream(self, name)

    def shards(self, split: str) -> list[str]:
        """Addresses of the shards of a split, in order."""
        source = str(getattr(self, split))
        if source in self._info:
            return [self._below(name) for name in self._info[source]["filenames"]]
        pattern = self.urls.replace("{split}", source)
        if "*" in pattern or "?" in pattern:
            if not self.local:
                raise DataError(f"wds: names in '{self.root}' cannot be listed; write urls={source}-{{0000..0146}}.tar")
            return sorted(str(path) for path in self.folder.glob(pattern))
        return [self._below(name) for name in expand(pattern)]

    def lengths(self, split: str) -> list[int]:
        """Number of samples of each shard: those of ``_info.json``, else counted.

        Raises:
            DataError: when shards are not on this machine and there is no ``_info.json``.
        """
        if split not in self._lengths:
            source = getattr(self, split)
            if source in self._info:
                self._lengths[split] = [int(n) for n in self._info[source]["shard_lengths"]]
            elif not self.local:
                raise DataError(f"wds: the lengths of the shards are not known; put {_INFO} beside them, as timm's sets have it")
            else:
                self._lengths[split] = [len(self._positions(shard)) for shard in self._some(split)]
        return self._lengths[split]

    def load(self, split: str) -> list[Item]:
        if not self.local:
            raise DataError("wds: items are listed for shards on this machine only; training streams without the list")
        return [Item(name, self.target(members, name)) for name, members in self._labelled(split)]

    def load_classes(self) -> list[str]:
        if self.local and (self.folder / self.names).is_file():
            lines = (self.folder / self.names).read_text(encoding="utf-8").splitlines()
            return [line.strip() for line in lines if line.strip()]
        if self.num_classes is not None:
            return [str(i) for i in range(self.num_classes)]
        if not self.local:
            raise DataError("wds: how many classes there are is not known; write num_classes=")
        labels = {label for name, members in self._labelled("train") for label in self._values(members, name)}
        if all(isinstance(label, int) for label in labels):
            return [str(i) for i in range(max(labels, default=-1) + 1)]
        return sorted(map(str, labels))

    def target(self, members: Mapping[str, bytes], name: str) -> int | tuple[int, ...]:
        """The target of a sample.

        Args:
            members: content of its files by ending.
            name: of the sample, for messages.

        Raises:
            DataError: when the label is missing or not among the names.
        """
        numbers = [value if isinstance(value, int) else self._numbers.get(value, -1) for value in self._values(members, name)]
        return tuple(sorted(set(numbers))) if self.multilabel else numbers[0]

    def missing(self, items: Sequence[Item]) -> list[Item]:
        return []

    def raw(self, item: Item) -> bytes:
        shard, _, key = item.path.partition("#")
        members = self._positions(self._below(shard))[key]
        ending = next((e for e in self._endings if e in members), None)
        if ending is None:
            raise DataError(f"wds: '{item.path}' has no image (image= names its ending); it has: {', '.join(members)}")
        return self._cut(self._below(shard), members[ending])

    def wanted(self, ending: str) -> bool:
        """Whether members of this ending are read: images and labels."""
        return ending in self._endings or ending == self.label.partition(".")[0]

    def decode(self, name: str, members: Mapping[str, bytes]) -> Image.Image:
        """The image of a sample.

        Raises:
            DataError: naming the sample, when it has no image or a damaged one.
        """
        data = next((members[e] for e in self._endings if e in members), None)
        if data is None:
            raise DataError(f"wds: '{name}' has no image (image= names its ending); it has: {', '.join(members)}")
        try:
            return open_image(data)
        except ValueError as error:
            raise DataError(f"wds: '{name}': {error}") from error

    @property
    def local(self) -> bool:
        """Whether the shards lie on this machine."""
        return (
            "://" not in self.root and not self.root.startswith("pipe:") and "://" not in self.urls and "pipe:" not in self.urls
        )

    @classmethod
    def fake(cls, root: Path, **settings: Any) -> WebDataset:
        opened = cls(root=str(root), **settings)
        root.mkdir(parents=True, exist_ok=True)
        info: dict[str, Any] = {}
        for split, count in (("train", TRAIN), ("val", TEST), ("test", TEST)):
            source = getattr(opened, split)
            keys = [(n % CLASSES, f"{source}{n:04d}") for n in range(CLASSES * count)] if source else []
            halves = {f"{source}-{s:04d}.tar": keys[s::2] for s in range(2 if source else 0)}
            for name, samples in halves.items():
                with tarfile.open(root / name, "w") as tar:
                    for label, key in samples:
                        opened._add(tar, label, key)
            info[str(source)] = {
                "name": str(source),
                "filenames": list(halves),
                "shard_lengths": [len(samples) for samples in halves.values()],
                "num_samples": len(keys),
            }
        (root / _INFO).write_text(json.dumps({"splits": info}, indent=2), encoding="utf-8")
        (root / opened.names).write_text("".join(f"class {i}\n" for i in range(CLASSES)), encoding="utf-8")
        return opened

    def _add(self, tar: tarfile.TarFile, label: int, key: str) -> None:
        image = BytesIO()
        draw(key, label).save(image, "PNG")
        ending, _, field = self.label.partition(".")
        value: Any = [label] if self.multilabel else label
        text = json.dumps({field: value} if field else value)
        for name, data in ((f"{key}.png", image.getvalue()), (f"{key}.{ending}", text.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, BytesIO(data))

    def _below(self, name: str) -> str:
        return str(self.folder / name) if self.local else f"{self.root.rstrip('/')}/{name}" if self.root else name

    def _some(self, split: str) -> list[str]:
        shards = self.shards(split)
        if not shards:
            raise DataError(
                f"wds: there are no shards '{self.urls.replace('{split}', str(getattr(self, split)))}' in '{self.root}'"
            )
        return shards

    def _values(self, members: Mapping[str, bytes], name: str) -> list[Any]:
        """The label of a sample as numbers or names."""
        ending, _, field = self.label.partition(".")
        if ending not in members:
            raise DataError(f"wds: '{name}' has no label .{ending}; label= says how its member ends")
        text = members[ending].decode("utf-8", errors="replace").strip()
        try:
            value: Any = json.loads(text)
        except json.JSONDecodeError:
            value = [_number(part) for part in text.split()] if self.multilabel else text
        if field:
            if not isinstance(value, dict) or field not in value:
                raise DataError(f"wds: '{name}.{ending}' has no key '{field}' (label= names it): {text[:80]}")
            value = value[field]
        values = list(value) if isinstance(value, list) else [value]
        if len(values) != 1 and not self.multilabel:
            raise DataError(f"wds: '{name}' has the label {text[:80]}; write multilabel=true for several labels")
        return values

    def _labelled(self, split: str) -> Iterator[tuple[str, Members]]:
        """Name and label members of every sample of a split, without reading images."""
        ending = self.label.partition(".")[0]
        for shard in self._some(split):
            for key, members in self._positions(shard).items():
                found = {ending: self._cut(shard, members[ending])} if ending in members else {}
                yield f"{Path(shard).relative_to(self.folder).as_posix()}#{key}", found

    def _positions(self, shard: str) -> dict[str, dict[str, tuple[int, int]]]:
        if shard not in self._known:
            self._known[shard] = positions(Path(shard))
        return self._known[shard]

    def _cut(self, shard: str, place: tuple[int, int]) -> bytes:
        with Path(shard).open("rb") as file:
            file.seek(place[0])
            return file.read(place[1])

    @cached_property
    def _known(self) -> dict[str, dict[str, dict[str, tuple[int, int]]]]:
        return {}

    @cached_property
    def _endings(self) -> tuple[str, ...]:
        return tuple(ending.strip().lower() for ending in self.image.split(";"))

    @cached_property
    def _numbers(self) -> dict[str, int]:
        return {name: i for i, name in enumerate(self.classes)}

    @cached_property
    def _lengths(self) -> dict[str, list[int]]:
        return {}

    @cached_property
    def _info(self) -> dict[str, Any]:
        """What ``_info.json`` says of each split."""
        if self.local:
            text = (self.folder / _INFO).read_text(encoding="utf-8") if (self.folder / _INFO).is_file() else "{}"
        elif self.root:
            text = (fetch(self._below(_INFO)) or b"{}").decode("utf-8")
        else:
            text = "{}"
        return json.loads(text).get("splits", {})


def _number(text: str) -> int | str:
    return int(text) if text.isdecimal() else text
