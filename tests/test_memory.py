import sys

import pytest
import torch

from paretune.memory import peak_bytes, reset_peak

SIZE = 300 * 2**20


@pytest.mark.skipif(sys.platform != "linux" or torch.cuda.is_available(), reason="a Linux process's own peak")
def test_a_peak_is_that_of_what_came_since_the_reset():
    reset_peak()
    before = peak_bytes()
    large = torch.ones(SIZE, dtype=torch.uint8)
    del large
    with_large = peak_bytes()
    reset_peak()
    after = peak_bytes()
    assert with_large - before > 0.9 * SIZE
    assert after - before < 0.2 * SIZE
