"""Fits of the estimators beside tuned peers on the same rows: seconds of a first fit and of a second one, and errors.

Each estimator has a fresh process for each size, so that its first fit compiles; imports and data are not included. The
peers are those of experiments/shared/baselines.py: a support vector machine and boosting, tuned by a grid search with
the same number of folds. Regression: a piecewise linear function of all of up to 10 columns, or of three of more.
Classification: on which side of its median such a function lies.

Run with `python benchmarks/estimators.py [--sizes 300x10 1000x20] [--kinds regression] [--methods NTK "auto gates"]`.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parent.parent))

METHODS = ("auto gates", "fixed kernel", "NTK", "RBF SVM", "gradient boosting")
NUM_TEST = 2000


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", nargs="+", default=["300x10", "1000x20"], metavar="ROWSxCOLUMNS")
    parser.add_argument("--kinds", nargs="+", default=["regression", "classification"])
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--worker", nargs=3, metavar=("KIND", "SIZE", "METHOD"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.worker:
        print(json.dumps(measure(*arguments.worker)))
        return
    for kind in arguments.kinds:
        for size in arguments.sizes:
            print(f"\n{kind}, {size}: seconds of the first and of the second fit, error on fresh rows")
            for method in arguments.methods:
                command = [sys.executable, __file__, "--worker", kind, size, method]
                first, second, error = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
                print(f"  {method:18} {first:8.2f} {second:8.2f} {error:8.4f}", flush=True)


def measure(kind: str, size: str, method: str) -> tuple[float, float, float]:
    """Seconds of two fits, and the mean squared error against the function, or the share of wrong classes."""
    # The experiments' packages are not part of the time.
    from experiments.shared.baselines import CLASSIFIERS, REGRESSORS

    warnings.simplefilter("ignore")
    x, y, x_test, y_test = make(kind, *map(int, size.split("x")))
    factory = (REGRESSORS if kind == "regression" else CLASSIFIERS)[method]
    seconds = []
    for _ in range(2):
        model = factory(0)
        began = time.perf_counter()
        model.fit(x, y)
        seconds.append(time.perf_counter() - began)
    predicted = model.predict(x_test)
    error = np.mean((predicted - y_test) ** 2) if kind == "regression" else np.mean(predicted != y_test)
    return seconds[0], seconds[1], float(error)


def make(kind: str, num_rows: int, num_columns: int) -> tuple[np.ndarray, ...]:
    """Training rows with noise of a tenth of the function's deviation, and test rows without."""
    rng = np.random.default_rng(0)
    x = rng.standard_normal((num_rows + NUM_TEST, num_columns))
    directions = rng.standard_normal((3, num_columns))
    # Of many columns three matter.
    directions[:, 3 if num_columns > 10 else num_columns :] = 0
    exact = np.maximum(x @ directions[0], 0) - np.maximum(x @ directions[1], 0) + np.abs(x @ directions[2])
    exact = (exact - exact.mean()) / exact.std()
    noisy = exact + 0.1 * rng.standard_normal(len(x))
    if kind == "classification":
        noisy, exact = (values > np.median(exact) for values in (noisy, exact))
    return x[:num_rows], noisy[:num_rows], x[num_rows:], exact[num_rows:]


if __name__ == "__main__":
    main()
