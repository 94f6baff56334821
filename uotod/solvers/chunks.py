"""Images of a batch in, chunks that fit a processor's cache out: images of similar size, without columns of padding."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

MAX_CHUNK_BYTES = 1 << 21  # of a cost; smaller chunks would take more calls than what the cache saves


class Chunk(NamedTuple):
    """Which images, and which of their columns; those of an image that has fewer than others are filled up.

    Attributes:
        image: (n,) places of the images in the batch.
        row: (n, K) places of their columns among the columns of all images.
        left_out: (n · (K_all - K),) the columns of theirs that take no part.
    """

    image: Tensor
    row: Tensor
    left_out: Tensor

    def rows(self, whole: Tensor) -> Tensor:
        """Return the part (n, K, ...) of a tensor (B, K_all, ...)."""
        return whole.flatten(0, 1).index_select(0, self.row.flatten()).view(*self.row.shape, *whole.shape[2:])

    def write(self, whole: Tensor, images: Tensor, part: Tensor) -> None:
        """Write the columns (m, K, ...) of those images of the chunk into a tensor (B, K_all, ...)."""
        whole.view(-1, *whole.shape[2:]).index_copy_(0, self.row[images].flatten(), part.flatten(0, 1).to(whole.dtype))


def chunks(used: Tensor, preds: int, itemsize: int) -> Iterator[Chunk]:
    """Yield the chunks of a batch with the columns `used`, (B, K_all) bool, largest images first; reads values."""
    images, columns = used.shape
    count, by_size = used.sum(1).sort(descending=True)
    row = used.to(torch.uint8).argsort(dim=1, descending=True, stable=True)  # used columns first, in their order
    row = (row + columns * torch.arange(images, device=used.device).unsqueeze(1))[by_size]
    counts, start = count.tolist(), 0
    while start < images:
        width = max(counts[start], 1)
        stop = start + max(MAX_CHUNK_BYTES // (width * preds * itemsize), 1)
        part = row[start:stop]
        yield Chunk(by_size[start:stop], part[:, :width], part[:, width:].flatten())
        start = stop
