"""Faults, against a cluster and a server of their own that end with the last test of this folder."""
