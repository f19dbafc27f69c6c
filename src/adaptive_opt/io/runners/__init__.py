"""Run independent nodes at the same time, on the cores of a machine or on a Ray cluster.

Data flow::

    pipeline ─→ nodes whose inputs exist ─→ worker processes ─→ events ─→ hooks in this process

- :mod:`.base`: the loop that starts nodes, and the events that workers send;
- :mod:`.local_runner`: ``StudyRunner``, the default, with forked processes as workers;
- :mod:`.ray_runner`: ``RayRunner``, with Ray tasks as workers.

Data do not pass through here: a node loads and saves them through the catalog.
"""
