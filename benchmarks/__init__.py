"""Measures the speed of the package beside a yardstick in the same run.

A run fails if one event of ours was lost, doubled or disordered, however fast it was.
"""
