"""Whole experiments from one YAML file: recordings, requests, audits, and grids of them."""
