"""The union of the decoder layers' matchings in transformers' DEIMv2 is that of `UnionVote`, ties apart."""

import pytest
import torch

from uotod.solvers.vote import union_vote

pytest.importorskip("transformers")


def pairs(index: list[int], targets: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the matched predictions and their targets."""
    matched = [(i, j) for i, j in enumerate(index) if j < targets]
    return tuple(torch.tensor(matched, dtype=torch.long).view(-1, 2).T)


@pytest.mark.parametrize(("preds", "targets"), [(12, 4), (6, 3), (4, 1), (3, 6)])
@pytest.mark.parametrize("layers", [2, 3, 6])
def test_each_prediction_keeps_the_target_with_the_most_votes(preds, targets, layers) -> None:
    from transformers.loss.loss_deimv2 import Deimv2Loss

    for _ in range(20):
        index = torch.full((layers, 2, preds), targets)
        for layer in index:
            for image in layer:  # one to one, half the targets at random
                count = int(torch.randint(0, min(preds, targets) + 1, ()))
                image[torch.randperm(preds)[:count]] = torch.randperm(targets)[:count]
        mass = torch.nn.functional.one_hot(index, targets + 1)[..., :targets].mT.to(torch.float32)
        share, found = union_vote(mass)
        lists = [[pairs(image.tolist(), targets) for image in layer] for layer in index]
        expected = Deimv2Loss._get_dense_o2o_indices(None, lists[-1], lists[:-1])
        for b in range(2):
            theirs = dict(zip(*(x.tolist() for x in expected[b]), strict=True))
            ours = {i: j for i, j in enumerate(found[b].tolist()) if share[b, i] > 0}
            assert theirs.keys() == ours.keys()
            for i, j in ours.items():
                votes = [int((index[:, b, i] == k).sum()) for k in range(targets)]
                assert votes[theirs[i]] == votes[j] == max(votes)
                assert j == votes.index(max(votes))
