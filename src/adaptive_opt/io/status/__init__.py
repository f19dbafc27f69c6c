"""What is finished, what is left and where results are: ``kedro adaptive status`` and summaries.

Data flow::

    files, checkpoints, Optuna database ─→ cells ─→ record (JSON) ─→ table

- :mod:`.grid`: the state of each search and training, read from files;
- :mod:`.report`: the record, the table and the estimate of the time left;
- :mod:`.outcome`: what ``kedro run`` prints at its end; loads finished runs into a notebook.
"""
