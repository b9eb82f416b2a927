"""What Stem puts on Redis, and what its signals look like on our channel, as pure code.

Facts were read in Stem's source at 0.2.1; where a name or form is surprising, the comment says so.
"""
