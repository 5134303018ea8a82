"""Tests of killed processes, damaged files, full disks and malicious files."""
