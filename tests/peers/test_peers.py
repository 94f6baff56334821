"""Other libraries beside ours in one process: they leave it as it was."""

import numpy as np
import PIL.Image
import torch

from tests.support.peers import peer


def test_ultralytics_replaces_nothing_that_others_use() -> None:
    peer("ultralytics.utils.loss")
    assert PIL.Image.open.__module__ == "PIL.Image"
    assert torch.save.__module__ == "torch.serialization"
    assert torch.get_num_threads() == 1
    assert len(str(torch.arange(40)).splitlines()) > 1
    assert np.get_printoptions()["linewidth"] == 75
