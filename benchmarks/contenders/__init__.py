"""Ways to bring events from one process to the sockets of another, all measured alike.

Each peer is set up as its documentation says, with nothing on the way that an
application could do without: no authentication, no middleware, no logging.
"""
