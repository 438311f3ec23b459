"""The parsers of the commands ``fixntk fit`` and ``fixntk predict``."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

# A command, from its arguments to the exit status.
Command = Callable[[argparse.Namespace], int]


def add_parsers(commands: Any, *, fit: Command, predict: Command) -> None:
    """Add ``fit`` and ``predict`` to the subparsers."""
    fitting = commands.add_parser("fit", help="fit a model of a column of a table")
    fitting.add_argument(
        "table", metavar="TABLE", type=Path, help="CSV file with a header, also .csv.gz, or Parquet file"
    )
    fitting.add_argument("--target", "--label", metavar="COL", required=True, help="the column to predict")
    fitting.add_argument("--out", metavar="MODEL", type=Path, required=True, help="file for the model")
    fitting.add_argument(
        "--columns",
        metavar="NAME=KIND ...",
        action="append",
        default=[],
        help='how columns are taken, such as "age=number when=date id=drop"; kinds: number, date (also times of day), '
        "category, drop, for the target number or category; names with blanks are quoted",
    )
    fitting.add_argument("--drop-missing-target", action="store_true", help="leave out rows without a target")
    fitting.add_argument(
        "--method", choices=("gated", "ntk"), default="gated", help="the fixed kernel (gated), or its NTK"
    )
    fitting.add_argument("--reg", type=float, help="regularisation, chosen by cross-validation without it")
    fitting.add_argument("--seed", type=int, default=0, help="for the gates")
    fitting.set_defaults(function=fit, extra="estimators")

    predicting = commands.add_parser("predict", help="predict with a model, for the rows of a table")
    predicting.add_argument("model", metavar="MODEL", type=Path, help="file that fixntk fit wrote")
    predicting.add_argument("table", metavar="TABLE", type=Path, help="CSV or Parquet file with the model's columns")
    predicting.add_argument(
        "--out", metavar="FILE", type=Path, help="CSV or Parquet file; CSV on standard output without it"
    )
    predicting.add_argument("--strict", action="store_true", help="refuse categories that the model has not seen")
    predicting.set_defaults(function=predict, extra="estimators")
