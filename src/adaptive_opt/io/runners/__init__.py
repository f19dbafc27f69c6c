"""Run independent nodes at the same time, on the cores of a machine or on a Ray cluster.

Data flow::

    pipeline ─→ nodes whose inputs exist ─→ worker processes ─→ events ─→ hooks in this process

- :mod:`.base`: the loop of both runners, which starts nodes and handles events;
- :mod:`.events`: a worker reports what Kedro's hooks are called with; this process calls them;
- :mod:`.local_runner`: ``StudyRunner``, the default, with forked processes as workers;
- :mod:`.ray_runner` and :mod:`.ray_worker`: ``RayRunner``, with tasks of Ray as workers.

Datasets do not pass through here: a node loads and saves them through the catalog.
"""
