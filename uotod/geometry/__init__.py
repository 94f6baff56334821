"""Geometry: tensors of boxes, points and anchors in, tensors out."""
