"""MLflow's record of the study.

Training writes what is to be recorded into files of a folder (:mod:`.spool`) and never speaks to
a server; another process (:mod:`.sender`) sends them on. Where that fails the files wait for
the next run.
"""
