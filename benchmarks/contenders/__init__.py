"""The contenders.

Each peer is set up as its documentation says, with nothing that an application could do
without: no authentication, no middleware, no logging.
"""
