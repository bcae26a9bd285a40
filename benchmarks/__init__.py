"""What the package can carry, measured beside a yardstick in the same run.

Every measurement is also a count: a run in which an event was lost, doubled or
out of order has failed, however fast it was.
"""
