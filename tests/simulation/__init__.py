"""The worker's, the scheduler's and the callers' own code on a broker, a network and a clock that are only pretended.

Nothing runs by itself: a rule lets one message pass, be lost or come late, and everything goes on from there to its
next message. So hypothesis decides about every race, and repeats what it has found. What is judged is the stream, by
the checker that judges chaos.
"""
