from concurrent.futures import CancelledError

import pytest
import torch

from ssae.activation.worker import Background


def test_work_asked_for_after_the_end_is_cancelled():
    """As work that was still waiting: a thread may ask while another one closes."""
    worker = Background(torch.device("cpu"), num_threads=1)
    assert worker.submit(lambda stop: 3)() == 3
    worker.close()
    with pytest.raises(CancelledError):
        worker.submit(lambda stop: 3)
