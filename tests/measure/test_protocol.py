import json

import matplotlib.image
import pytest
import torch

from vitrim.kernels import agglomerative
from vitrim.measure import cells as module
from vitrim.measure.cells import Bench, Cell, Entry, free_memory
from vitrim.measure.curves import plot_curves
from vitrim.measure.frameworks import FRAMEWORKS, reference_distances
from vitrim.measure.ledger import ANSWERS, Ledger, answer
from vitrim.measure.protocol import Protocol, time_series


class Clock:
    """Time that passes only when something runs, and a record of who ran."""

    def __init__(self):
        self.now = 0.0
        self.seen = []
        self.waited = 0

    def __call__(self):
        return self.now

    def wait(self):
        self.waited += 1

    def run(self, name, *seconds):
        """A call that takes ``seconds`` one after the other, the last of them for ever."""
        left = list(seconds)

        def call():
            self.now += left.pop(0) if len(left) > 1 else left[0]
            self.seen.append(name)

        return call

    def time(self, calls, protocol, **options):
        return time_series(calls, protocol, clock=self, synchronise=self.wait, **options)


def test_clock_and_counter_start_again_at_the_published_run():
    clock = Clock()
    # 10 slow runs, which are thrown out, then 30 that are not.
    found = clock.time({"a": clock.run("a", *[5.0] * 10, 0.5)}, Protocol(40, 0.25, seconds=0, turns=1))["a"]
    assert len(clock.seen) == 40
    assert found.counts == (30,)
    assert found.elapsed == pytest.approx(15)
    assert found.throughput(64) == pytest.approx(30 * 64 / 15)
    late = clock.time({"a": clock.run("a", *[5.0] * 11, 0.5)}, Protocol(40, 0.25, seconds=0))["a"]
    assert late.elapsed == pytest.approx(5 + 29 * 0.5)


@pytest.mark.parametrize(("runs", "share", "thrown"), [(40, 0.25, 10), (1000, 0.25, 250), (7, 0.25, 1), (3, 0.25, 0), (9, 0, 0)])
def test_share_thrown_out_rounds_down(runs, share, thrown):
    clock = Clock()
    found = clock.time({"a": clock.run("a", 1.0)}, Protocol(runs, share, seconds=0))["a"]
    assert Protocol(runs, share).thrown(runs) == thrown
    assert sum(found.counts) == runs - thrown
    assert len(clock.seen) == runs


def test_turns():
    clock = Clock()
    found = clock.time({"a": clock.run("a", 1.0), "b": clock.run("b", 0.5)}, Protocol(8, 0.25, seconds=0, turns=3))
    assert "".join(clock.seen) == "aabb" + "aabb" * 3
    assert found["b"].counts == (2, 2, 2)
    assert found["b"].timing.ratios == (2, 2, 2)
    assert found["a"].timing.ratios == (1, 1, 1)
    # Before and after each turn, not between the runs of one.
    assert clock.waited == 2 * (2 + 6)


def test_turns_share_what_does_not_divide():
    clock = Clock()
    found = clock.time({"a": clock.run("a", 1.0)}, Protocol(11, 0, seconds=0, turns=4))["a"]
    assert found.counts == (3, 3, 3, 2)
    assert found.timing.seconds == (1, 1, 1, 1)


def test_a_slow_series_is_cut_and_a_fast_one_is_not():
    clock = Clock()
    found = clock.time({"slow": clock.run("slow", 1.0), "fast": clock.run("fast", 0.01)}, Protocol(40, 0.25, seconds=2))
    # 4 runs, of which 1 is thrown out; one more told how long a run takes.
    assert clock.seen.count("slow") == 5
    assert found["slow"].counts == (1, 1, 1)
    assert clock.seen.count("fast") == 41
    assert found["fast"].counts == (10, 10, 10)
    clock.seen.clear()
    clock.time({"slow": clock.run("slow", 1.0)}, Protocol(40, 0.25, seconds=2), seconds_per_run={"slow": 1.0})
    assert clock.seen.count("slow") == 4


@pytest.mark.parametrize(("seconds_per_run", "runs"), [(0.01, 40), (0.05, 40), (0.1, 20), (0.3, 6), (0.7, 4), (900.0, 4)])
def test_length_of_a_series(seconds_per_run, runs):
    assert Protocol(40, 0.25, seconds=2).length(seconds_per_run) == runs
    assert Protocol(40, 0.25, seconds=0).length(seconds_per_run) == 40
    assert Protocol(2, 0.25, seconds=2).length(900) == 2


@pytest.mark.parametrize("share", [0, 0.1, 0.25, 0.5, 0.8, 0.9])
def test_at_least_three_runs_are_counted(share):
    protocol = Protocol(1000, share, seconds=1)
    assert protocol.length(60) - protocol.thrown(protocol.length(60)) >= 3


@pytest.mark.parametrize("wrong", [{"runs": 0}, {"turns": 0}, {"throw_out": 1.0}, {"throw_out": -0.1}, {"seconds": -1}])
def test_impossible_protocols_are_refused(wrong):
    with pytest.raises(ValueError, match="got"):
        Protocol(**wrong)


def test_nothing_to_time_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        time_series({}, Protocol())


def test_no_gradients_are_recorded():
    seen = []
    time_series({"a": lambda: seen.append(torch.is_grad_enabled())}, Protocol(2))
    assert not any(seen)


@pytest.mark.parametrize("linkage", ["single", "complete", "average"])
def test_every_framework_finds_the_same_clusters(linkage):
    features = torch.rand(3, 40, 16, generator=torch.Generator().manual_seed(1))
    expected = agglomerative(reference_distances(features).double(), 15, linkage=linkage, metric="precomputed")
    for framework in FRAMEWORKS.values():
        if framework.why_not(40, linkage, torch.device("cpu")):
            continue
        found = framework.make(15, linkage)(features)
        assert found.shape == (3, 40)
        assert found.dtype == torch.int64
        assert torch.equal(found[:, :, None] == found[:, None], expected[:, :, None] == expected[:, None]), framework.name


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_frameworks_take_half_precision(dtype):
    features = torch.rand(2, 12, 8).to(dtype)
    for framework in FRAMEWORKS.values():
        if not framework.why_not(12, "average", torch.device("cpu")):
            assert framework.make(5, "average")(features).shape == (2, 12), framework.name


def test_frameworks_say_why_not(monkeypatch):
    cpu = torch.device("cpu")
    assert "single linkage only" in FRAMEWORKS["cuml"].why_not(10, "average", cpu)
    assert "--device cuda" in FRAMEWORKS["cuml"].why_not(10, "single", cpu)
    assert "4096" in FRAMEWORKS["vitrim"].why_not(5000, "single", cpu)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert FRAMEWORKS["scikit-learn"].why_not(10, "single", cpu) == "not installed: pip install scikit-learn"


def entry(name, run=lambda x: x.sum(), why_not="", **question):
    return Entry(name, {"name": name, **question}, run, why_not)


def bench(folder, **options):
    return Bench(Ledger(folder, "rows"), Protocol(4, 0.25, 0.05), torch.device("cpu"), **options)


def cell(batch, *entries):
    return Cell(batch, entries, lambda count: torch.rand(count, 10))


def test_rows_have_numbers_and_ratios(tmp_path):
    first, second = bench(tmp_path).run([cell(4, entry("a"), entry("b"))])
    assert first["name"] == "a"
    assert first["batch_size"] == 4
    assert first["ratio"] == 1
    assert second["low"] <= second["median"] <= second["high"]
    assert second["ratio_low"] <= second["ratio"] <= second["ratio_high"]
    assert second["counted_runs"] == 3
    assert second["note"] == ""
    assert list(first)[-len(ANSWERS) :] == list(ANSWERS)


def test_what_is_measured_is_not_measured_again(tmp_path):
    ran = []

    def recorded(name):
        return entry(name, lambda x: ran.append((name, len(x))))

    cells = [cell(2, recorded("a"), recorded("b"))]
    before = list(bench(tmp_path).run(cells))
    ran.clear()
    assert list(bench(tmp_path).run(cells)) == []
    assert ran == []
    # A newcomer runs beside the reference, whose row stays what it was.
    rows = list(bench(tmp_path).run([cell(2, recorded("a"), recorded("b"), recorded("c"))]))
    assert [row["name"] for row in rows] == ["c"]
    assert rows[0]["ratio"] is not None
    assert {name for name, _ in ran} == {"a", "c"}
    assert Ledger(tmp_path, "rows").rows == [*before, *rows]
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert lines[0] == ",".join(["name", "batch_size", *ANSWERS])
    assert len(lines) == 4


def test_rows_are_on_disk_as_soon_as_they_are_given(tmp_path):
    rows = bench(tmp_path).run([cell(1, entry("a")), cell(2, entry("a"))])
    next(rows)
    assert [row["batch_size"] for row in json.loads((tmp_path / "rows.json").read_text())["rows"]] == [1]


def test_ctrl_c_keeps_finished_cells(tmp_path):
    def press(x):
        if len(x) == 8:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        list(bench(tmp_path).run([cell(n, entry("a", press)) for n in (1, 8)]))
    assert [row["batch_size"] for row in Ledger(tmp_path, "rows").rows] == [1]


def test_one_that_fails_does_not_cost_the_others(tmp_path):
    def broken(x):
        raise RuntimeError("no luck\nat all")

    def hungry(x):
        if len(x) > 1:
            raise MemoryError

    cells = [cell(2, entry("a"), entry("b", broken), entry("c", hungry), entry("d", why_not="not installed"), entry("e"))]
    rows = {row["name"]: row for row in bench(tmp_path).run(cells)}
    assert rows["b"]["note"] == "RuntimeError: no luck"
    assert "memory" in rows["c"]["note"]
    assert rows["d"]["note"] == "not installed"
    assert rows["d"]["throughput"] is None
    assert rows["e"]["ratio"] is not None
    # Tried again, since it may have been installed.
    assert [row["name"] for row in bench(tmp_path).run(cells)] == ["b", "c", "d"]


def test_without_the_reference_there_are_no_ratios(tmp_path):
    reference, other = bench(tmp_path).run([cell(2, entry("a", why_not="not installed"), entry("b"))])
    assert reference["throughput"] is None
    assert other["throughput"] > 0
    assert other["ratio"] is None
    # There is nothing new to measure until the reference can run.
    (again,) = bench(tmp_path).run([cell(2, entry("a", why_not="not installed"), entry("b"))])
    assert again["name"] == "a"
    reference, other = bench(tmp_path).run([cell(2, entry("a"), entry("b"))])
    assert reference["ratio"] == 1
    assert other["ratio"] > 0
    assert len(Ledger(tmp_path, "rows").rows) == 2


def test_a_series_that_takes_too_long_is_told_from_the_smaller_batch(tmp_path):
    ledger = Ledger(tmp_path, "rows")
    ledger.add([answer({"name": "a", "batch_size": 8}, throughput=2.0, median=2.0)])
    ran = []
    (row,) = bench(tmp_path).run([cell(64, entry("a", lambda x: ran.append(len(x))))])
    # 32 s a run, of which there are 4, and one to warm up.
    assert row["note"] == "left out: would take about 160 s; --patience is 60 s"
    assert 64 not in ran
    (row,) = bench(tmp_path, patience=200).run([cell(64, entry("a", lambda x: ran.append(len(x))))])
    assert row["throughput"] > 0


def test_what_does_not_fit_into_memory_is_not_tried(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "free_memory", lambda device: 1e6)
    sizes = []

    def run(x):
        sizes.append(len(x))
        return x[:, :, None] @ x[:, None]  # 400 bytes an image

    rows = list(bench(tmp_path).run([cell(n, entry("a", run)) for n in (100, 10_000)]))
    assert rows[0]["throughput"] > 0
    assert rows[1]["note"].startswith("left out: needs about")
    assert 10_000 not in sizes


def test_half_precision_runs_under_autocast(tmp_path):
    seen = []
    weight = torch.rand(10, 10)
    run = entry("a", lambda x: seen.append((x @ weight).dtype))
    list(bench(tmp_path, dtype=torch.bfloat16).run([cell(2, run)]))
    assert set(seen) == {torch.bfloat16}


def test_free_memory_is_a_number_of_bytes():
    assert free_memory(torch.device("cpu")) > 1e7


def test_a_file_of_something_else_is_left_alone(tmp_path):
    (tmp_path / "rows.json").write_text("[1]")
    with pytest.raises(ValueError, match="another --out"):
        Ledger(tmp_path, "rows")
    assert (tmp_path / "rows.json").read_text() == "[1]"


def test_curves(tmp_path):
    rows = [
        answer({"name": name, "n": n, "batch_size": size}, median=size * speed, low=size * speed * 0.9, high=size * speed * 1.2)
        for name, speed in {"a": 1.0, "b": 7.0}.items()
        for n in (49, 196)
        for size in (1, 2, 4)
    ]
    rows.append(answer({"name": "c", "n": 49, "batch_size": 1}, note="not installed"))
    path = plot_curves(rows, tmp_path / "x.png", line="name", across="n", title="t")
    assert path is not None
    picture = matplotlib.image.imread(path)[:, :, :3]
    # Both lines are there, in their colours.
    for colour in ("#0072B2", "#D55E00"):
        rgb = torch.tensor([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])
        assert ((torch.from_numpy(picture) - rgb).abs().amax(-1) < 0.02).sum() > 50
    assert plot_curves(rows[-1:], tmp_path / "y.png", line="name", across="n") is None
    assert plot_curves(rows, tmp_path / "y.png", line="name", across="n", value="ratio") is None
    assert not (tmp_path / "y.png").exists()
