"""The losses of fine-grained distributions: logits of the offsets of a box's sides in, their losses out."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from uotod.check import check_integer, check_number
from uotod.geometry.boxes import aligned_overlap, box_xyxy_to_cxcywh, full_precision
from uotod.geometry.sides import bins_of, check_sides, interpolated_loss
from uotod.loss.reduce import check_reduction, reduce_loss


def fine_grained_bins(max_bin: int = 32, *, bound: float = 0.5, scale: float = 4.0) -> Tensor:
    r"""Return the offsets `W(0), ..., W(N)` of D-FINE, in sizes of the reference box: fine near 0, coarse far away.

    .. math:: W(n) = \mp c \pm c\, (a / c + 1)^{|2 n - N| / (N - 2)} \text{ for } 0 < n < N, \qquad W(0) = -W(N) = -2 a

    with the lower sign for `n < N / 2`, and `c = 1 / scale`.

    Args:
        max_bin: `N`, an even number of at least 4.
        bound: `a`, the offset of the last bin but one.
        scale: inverse of the curvature `c`.

    Returns:
        (N + 1,) offsets, float64.

    Raises:
        ValueError: an argument is out of its range.

    References:
        Peng et al., "D-FINE: redefine regression task in DETRs as fine-grained distribution refinement", ICLR 2025,
        eq. 5 and appendix.

    Examples:
        >>> fine_grained_bins(6)
        tensor([-1.0000, -0.5000, -0.1830,  0.0000,  0.1830,  0.5000,  1.0000], dtype=torch.float64)
    """
    if check_integer("max_bin", max_bin, low=4) % 2:
        raise ValueError(f"max_bin must be even, got {max_bin}")
    bound = check_number("bound", bound, low=0.0, low_open=True)
    curvature = 1 / check_number("scale", scale, low=0.0, low_open=True)
    steps = torch.arange(max_bin // 2, dtype=torch.float64) * 2 / (max_bin - 2)
    right = curvature * ((bound / curvature + 1) ** steps - 1)  # W(N / 2), ..., W(N - 1)
    right = torch.cat((right, right.new_tensor([2 * bound])))
    return torch.cat((-right[1:].flip(0), right))


class FineGrainedLoss(nn.Module):
    r"""Raise the probability of the two bins around the true offset of each side from its reference box (FGL).

    .. math:: L = -u \sum_\text{sides} \left( \frac{y_{n + 1} - y}{y_{n + 1} - y_n} \ln S_n
        + \frac{y - y_n}{y_{n + 1} - y_n} \ln S_{n + 1} \right), \qquad y_n \le y \le y_{n + 1}

    `S` is the softmax of the logits, `y_n` the bins of `fine_grained_bins`, `y` the distance of the side from the
    centre of the reference box less half of the box, in sizes of that box and clamped to the bins, and `u` the IoU of
    predicted and target box, without gradient. As the localisation loss of a `DetectionLoss` it reads
    `input["pred_dist"]` (B, P, 4, N + 1) and takes the reference boxes as anchors.

    Args:
        max_bin: `N`, an even number of at least 4.
        bound: offset of the last bin but one.
        scale: inverse of the curvature of the bins.
        reduction: "none", "mean" (over boxes) or "sum".

    Shape:
        pred_boxes and target_boxes: (..., 4) boxes, xyxy; pred_dist: (..., 4, N + 1) logits of the left, upper, right
        and lower side; anchors: (..., 4) reference boxes, xyxy. Output: (...) or ().

    Raises:
        ValueError: a shape is wrong.

    References:
        Peng et al., "D-FINE", ICLR 2025, eq. 6.

    Examples:
        >>> logits, box = torch.zeros(1, 4, 33), torch.tensor([[0.2, 0.2, 0.6, 0.6]])
        >>> FineGrainedLoss()(box, box, pred_dist=logits, anchors=box)  # 4 ln 33
        tensor(13.9860)
    """

    needs = ("pred_boxes", "target_boxes", "pred_dist", "anchors")
    bins: Tensor

    def __init__(self, *, max_bin: int = 32, bound: float = 0.5, scale: float = 4.0, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)
        self.register_buffer("bins", fine_grained_bins(max_bin, bound=bound, scale=scale), persistent=False)

    def forward(self, pred_boxes: Tensor, target_boxes: Tensor, pred_dist: Tensor, anchors: Tensor) -> Tensor:
        """Return the loss of each row, or its mean or sum.

        Raises:
            ValueError: a shape is wrong, or the number of bins differs from that of the logits.
        """
        check_sides(target_boxes, pred_dist)
        pred_dist, target = full_precision(pred_dist), full_precision(target_boxes)
        reference = box_xyxy_to_cxcywh(full_precision(anchors))
        center, size = reference[..., :2], reference[..., 2:]
        size = torch.where(size > 0, size, 1.0)
        offset = torch.cat(((center - target[..., :2]) / size, (target[..., 2:] - center) / size), dim=-1) - 0.5
        bins = bins_of(pred_dist, self.bins)
        loss = interpolated_loss(pred_dist, offset.to(pred_dist.dtype), bins).sum(-1)
        with torch.no_grad():
            quality = aligned_overlap(full_precision(pred_boxes), target, "iou", eps=0.0)
        return reduce_loss(quality * loss, self.reduction)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"max_bin={len(self.bins) - 1}, reduction={self.reduction!r}"


class DistillationLoss(nn.Module):
    r"""Teach the distributions of an earlier decoder layer those of the final one (DDF of D-FINE).

    .. math:: L = \frac{\sqrt{n_+}\, \bar K_+ + \sqrt{n_-}\, \bar K_-}{\sqrt{n_+} + \sqrt{n_-}}, \qquad
        K = w\, \tau^2\, \mathrm{KL}\big(\operatorname{softmax}(t / \tau) \,\|\, \operatorname{softmax}(s / \tau)\big)

    The bars are means over the sides of the `n_+` matched and of the `n_-` other predictions of the batch; the weight
    `w` is the IoU of a matched pair, and of other predictions the largest sigmoid score of the teacher. Neither the
    weight nor the teacher has a gradient. It is the loss of the term `Distillation`, a mean already, which no
    normaliser divides.

    Args:
        temperature: `τ`, above 0.
        weight: factor of the loss, at least 0.

    References:
        Peng et al., "D-FINE", ICLR 2025, eq. 7.

    Examples:
        >>> student, teacher = torch.zeros(1, 1, 4, 3), torch.tensor([2.0, 0.0, 0.0]).expand(1, 1, 4, 3)
        >>> DistillationLoss()(student, teacher, torch.zeros(1, 1, 2), torch.ones(1, 1))
        tensor(0.4770)
    """

    def __init__(self, *, temperature: float = 5.0, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = check_number("weight", weight, low=0.0)
        self.temperature = check_number("temperature", temperature, low=0.0, low_open=True)

    def forward(self, student: Tensor, teacher: Tensor, teacher_logits: Tensor, quality: Tensor) -> Tensor:
        """Return the loss, a tensor without dimensions.

        Args:
            student: (B, P, 4, N + 1) logits of an earlier layer.
            teacher: (B, P, 4, N + 1) logits of the final layer.
            teacher_logits: (B, P, C) class logits of the final layer.
            quality: (B, P) IoU of each matched prediction of the student with its target, NaN for those that are not
                matched.
        """
        student, teacher = full_precision(student), full_precision(teacher).detach()
        score = full_precision(teacher_logits).detach().sigmoid().amax(-1)
        matched = ~quality.isnan()
        share = torch.where(matched, full_precision(quality).detach(), score)
        log_s, log_t = (F.log_softmax(x / self.temperature, dim=-1) for x in (student, teacher))
        divergence = F.kl_div(log_s, log_t, reduction="none", log_target=True).sum((-2, -1)) / 4  # (B, P)
        loss = self.temperature**2 * share * divergence
        total = root_sum = loss.new_zeros(())
        for rows in (matched, ~matched):
            count = rows.sum().to(loss.dtype)
            total = total + torch.where(rows, loss, 0).sum() / count.clamp(min=1).sqrt()
            root_sum = root_sum + count.sqrt()
        return self.weight * total / root_sum.clamp(min=1)

    def extra_repr(self) -> str:
        """Return the arguments for `repr`."""
        return f"temperature={self.temperature}, weight={self.weight}"
