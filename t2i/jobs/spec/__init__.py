"""Specification of jobs: requests, prompt files, output names."""
