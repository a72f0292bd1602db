"""What the router decides, without doing any of it.

Nothing in this package touches an event loop, a socket, a file, the clock or randomness: time and
random bytes are arguments. So every decision can be tested, and simulated, without any of them.
"""
