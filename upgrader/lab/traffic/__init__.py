"""What a VM feels while its switch is exchanged: open-loop UDP per VM and direction, and its arithmetic.

`session` is the way in: a `TrafficSession` starts every flow, marks events, and yields `FlowFigures`.
`analysis` is the arithmetic (pure), `protocol` the client of the C agent `pktflow`, `build` compiles it.
"""
