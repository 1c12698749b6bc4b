"""Run a script as its user would, with our callbacks switched on by an environment variable."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lightning_tricks._base import UserInputError
from lightning_tricks.doctor._entry_point import VARIABLE


def run_script(
    script: str,
    arguments: Sequence[str] = (),
    *,
    tricks: Sequence[str] = ("recipe",),
    monitor: str | None = None,
    module: bool = False,
) -> int:
    """Run somebody's training program, unchanged, with our callbacks in each Trainer that fits.

    The program runs in a Python process of its own with the same interpreter, working directory, environment and
    arguments as without this package; the processes that it starts (loader workers, ranks) get the callbacks too.

    Args:
        script: the path of a ``.py`` file or a notebook (``.ipynb``, its code cells one after another), or the name of
            a module.
        arguments: what the program finds in ``sys.argv[1:]``.
        tricks: ``"recipe"``, ``"diagnosis"``, or names of callbacks of this package.
        monitor: the metric that they watch; None for the one that the script's own callbacks watch, else ``val_loss``.
        module: whether ``script`` names a module, as in ``python -m``.

    Returns:
        The program's exit code; 128 + N if signal N ended it.

    Raises:
        UserInputError: if there is no such file, or a trick is unknown.

    Example:
        >>> run_script("no_such_file.py")
        Traceback (most recent call last):
        ...
        lightning_tricks._base._messages.UserInputError: There is no file 'no_such_file.py' to run. ...
    """
    if not module and not Path(script).is_file():
        raise UserInputError(
            f"There is no file {script!r} to run. Give the path of a script or notebook, or -m MODULE."
        )
    from lightning_tricks.doctor._attach import check_tricks

    check_tricks(tricks)
    settings = json.dumps({"tricks": list(tricks), "monitor": monitor})
    environment = {**os.environ, VARIABLE: settings}
    if module:
        return _run([sys.executable, "-m", script, *arguments], environment)
    if not script.endswith(".ipynb"):
        return _run([sys.executable, script, *arguments], environment)
    with tempfile.TemporaryDirectory(prefix="lightning_tricks_notebook_") as folder:
        source = Path(folder) / (Path(script).stem + ".py")
        source.write_text(notebook_source(Path(script)), encoding="utf-8")
        paths = [
            str(Path(script).resolve().parent),
            os.environ.get("PYTHONPATH", ""),
        ]  # a notebook imports its neighbours
        environment["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)
        return _run([sys.executable, str(source), *arguments], environment)


def notebook_source(path: Path) -> str:
    """Return the code cells of a notebook as one script; lines for IPython alone (``%``, ``!``) become comments.

    Raises:
        UserInputError: if the file is no notebook.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        sources = ["".join(cell["source"]) for cell in cells if cell["cell_type"] == "code"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserInputError(f"{path} must be a notebook (JSON with 'cells'), but it is not: {error!r}.") from error
    lines = [line for source in sources if not source.startswith("%%") for line in [*source.splitlines(), ""]]
    return "\n".join(f"# {line}" if line.lstrip().startswith(("%", "!")) else line for line in lines) + "\n"


def _run(command: Sequence[str], environment: dict[str, str]) -> int:
    with subprocess.Popen(command, env=environment) as process:  # noqa: S603  # the user's own program
        while True:
            try:
                code = process.wait()
                break
            except KeyboardInterrupt:
                continue  # the terminal sent it to the program as well, which ends as it likes
    return code if code >= 0 else 128 - code
