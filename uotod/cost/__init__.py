"""Costs: how a sub-loss takes part, for all pairs and for matched rows."""
