"""Experiments: from a config file to rows of results, figures and a report.

An experiment is a module that offers what :class:`fixntk.runner.config.Experiment` describes.

- ``config``: ``load_config``, ``Experiment``, ``Row``, ``ConfigError``
- ``run``: ``execute`` and ``regenerate``, which ``fixntk run`` and ``fixntk report`` call
- ``status``: ``show_stage``, by which a task says what it is doing
- ``rows``: ``read_rows``, ``rows_by_task``, ``to_json``
- ``report``: ``Section``, ``new_figure``, ``use_style``, ``render``, ``render_markdown``
- ``marks``: ``label_points``, which names the points of a figure, whose values the report shows
- ``environment``: versions, device and git revision
- ``compilation_cache``: the folder in which the command keeps compiled programs

Nothing is imported here: ``environment`` and ``compilation_cache`` need only the core dependencies, all others need the
extra ``experiments``.
"""
