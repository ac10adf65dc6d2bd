import pytest

from vitrim.measure.throughput import Timing, interleave


def test_runs_take_turns_after_the_warm_up():
    seen = []
    runs = {name: (lambda name=name: seen.append(name)) for name in "abc"}
    interleave(runs, rounds=3, warmup=2, repeat=2)
    assert "".join(seen) == "aabbcc" + "aabbcc" * 3


def test_one_reading_per_round_and_ratios_against_the_first():
    found = interleave({"a": lambda: None, "b": lambda: None}, rounds=4, warmup=0)
    assert len(found["a"].seconds) == len(found["b"].seconds) == 4
    assert found["a"].ratios == (1, 1, 1, 1)
    assert found["b"].ratios == tuple(x / y for x, y in zip(found["a"].seconds, found["b"].seconds, strict=True))


def test_statistics():
    timing = Timing(seconds=(0.1, 0.2, 0.3, 0.4, 1.5), ratios=(1.0, 2.0, 9.0))
    assert timing.median == 0.3
    assert timing.quartiles == (0.2, 0.4)
    assert timing.speedup == 2.0
    assert timing.speedup_quartiles == (1.5, 5.5)
    assert timing.milliseconds == pytest.approx(300)
    assert timing.per_second(30) == pytest.approx(100)
    assert Timing((2.0,), (1.0,)).quartiles == (2.0, 2.0)


@pytest.mark.parametrize("options", [{"runs": {}}, {"rounds": 0}, {"repeat": 0}])
def test_nothing_to_time_is_refused(options):
    with pytest.raises(ValueError, match="at least 1"):
        interleave(**{"runs": {"a": lambda: None}, **options})
