"""Reads the host's facts, and carries out plans step by step."""
