"""Criteria: how a plan becomes losses."""
