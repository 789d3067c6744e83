"""Measurements of procmgr beside its peers; see README.md. Not tests: pytest collects nothing here."""
