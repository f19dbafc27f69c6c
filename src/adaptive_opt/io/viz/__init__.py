"""``kedro viz run`` and ``kedro viz build``: kedro-viz's page for a grid of hundreds of results.

Data flow::

    pipelines, catalog ─→ kedro-viz ─→ graph (nest) ─→ page or static site

- :mod:`.graph`: moves each dataset of kedro-viz's graph into the namespace that makes it;
- ``commands``: the two commands, with the server and the static site.

Neither the page nor the server contacts another host.
"""
