"""Nearest codes: in W+, W or S^N, by exact comparison or by an index whose answers are compared exactly."""
