import torch

from vitrim.measure.memory import peak_memory

KB = 1024


def block(kilobytes):
    return torch.ones(kilobytes * KB, dtype=torch.uint8)


def test_peak_is_what_lives_at_once():
    def run():
        a = block(10)
        b = block(20)
        del a, b
        block(25)

    assert peak_memory(run) == 30 * KB


def test_views_and_operators_in_place_cost_nothing():
    def run():
        a = block(10)
        b = a.view(2, -1).transpose(0, 1)
        b.add_(1)
        assert a.reshape(-1).sum() > 0

    # The sum and the comparison are scalars.
    assert 10 * KB <= peak_memory(run) < 10 * KB + 64


def test_weights_and_input_are_not_counted():
    layer, x = torch.nn.Linear(256, 4, bias=False), torch.randn(8, 256)
    assert peak_memory(lambda: layer(x)) == 8 * 4 * 4


def test_a_longer_chain_peaks_higher_when_it_keeps_its_parts():
    def run(keep):
        parts = []
        for _ in range(5):
            part = block(4)
            if keep:
                parts.append(part)
            del part

    assert peak_memory(lambda: run(True)) == 20 * KB
    assert peak_memory(lambda: run(False)) == 4 * KB


def test_memory_freed_later_does_not_disturb_the_next_measurement():
    kept = []
    peak_memory(lambda: kept.append(block(10)))

    def run():
        kept.clear()
        block(3)

    assert peak_memory(run) == 3 * KB
