"""The gallery: runs the examples and shows what they draw, with their code.

`python docs/_site/gallery.py [FOLDER]` draws the pictures without building the site. While building the site, pictures
that are there already are kept as long as neither the example nor the package has changed.
"""

import ast
import hashlib
import io
import logging
import os
import subprocess
import sys
import warnings
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "examples"
PICTURES = (".png", ".gif")
ALONE = {"08_multi_gpu"}  # starts its file again as another process, and so has to be the program that runs
QUICK = "DOCS_QUICK"  # an environment variable: any value draws pictures from runs of a few seconds


def write(folder):
    """Write a page for each example and one that shows all pictures."""
    for example in scripts():
        draw(example, folder / example.stem)
        _put(folder / f"{example.stem}.md", _page(example, folder))
    _put(folder / "index.md", _index(folder))


def scripts():
    """Return the examples in order: the numbered ones, then the picture books."""
    return sorted(path for path in EXAMPLES.glob("*.py") if not path.name.startswith("_"))


def draw(example, out):
    """Run the example, unless its pictures are up to date."""
    stamp = out / "stamp.txt"
    state = _state(example)
    if stamp.exists() and stamp.read_text() == state:
        return
    quick = bool(os.environ.get(QUICK))
    if example.stem in ALONE:
        _run_alone(example, out, quick)
    else:
        _run_here(example, out, quick)
    stamp.write_text(state)


def _run_here(example, out, quick):
    sys.path[:0] = [str(EXAMPLES)]
    said = io.StringIO()
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(said), redirect_stderr(said), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import_module(example.stem).main(out, quick)
    except BaseException:
        sys.stderr.write(f"{example.name} failed. It said:\n{said.getvalue()[-4000:]}\n")
        raise
    finally:
        logging.disable(logging.NOTSET)
        sys.path.remove(str(EXAMPLES))


def _run_alone(example, out, quick):
    command = [sys.executable, "-W", "ignore", str(example), "--out", str(out), *(["--quick"] if quick else [])]
    path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    environment = {**os.environ, "PYTHONPATH": path}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)  # noqa: S603
    if result.returncode:
        raise SystemExit(f"{example.name} failed:\n{result.stdout[-2000:]}\n{result.stderr[-4000:]}")


def _state(example):
    files = [example, *sorted((ROOT / "lightning_tricks").rglob("*.py"))]
    digest = hashlib.sha256(b"".join(file.read_bytes() for file in files))
    return f"{digest.hexdigest()} {bool(os.environ.get(QUICK))}"


def _describe(example):
    """Return the title and the rest of the example's docstring."""
    text = ast.get_docstring(ast.parse(example.read_text(encoding="utf-8"))) or example.stem
    title, _, rest = text.partition("\n\n")
    run, _, rest = rest.partition("\n\n")
    return " ".join(title.split()).rstrip("."), run.removeprefix("Run: "), rest


def _pictures(folder, example):
    found = (path for path in (folder / example.stem).iterdir() if path.suffix in PICTURES)
    return sorted(path.relative_to(folder).as_posix() for path in found)


def _show(folder, example):
    names = _pictures(folder, example)
    return "\n".join(f"![{Path(name).stem.replace('_', ' ')}]({name})\n" for name in names)


def _number(example):
    digits = example.stem[:2]
    return f"{int(digits)}. " if digits.isdigit() else ""


def _short(example):
    return example.stem.lstrip("0123456789_").replace("_", " ").capitalize()


def _page(example, folder):
    title, run, rest = _describe(example)
    code = f"```{{literalinclude}} ../../../examples/{example.name}\n:language: python\n```"
    head = f"# {_number(example)}{title}\n\n```\n{run}\n```\n\n{rest}"
    return f"{head}\n\n{_show(folder, example)}\n\n## The code\n\n{code}\n"


def _index(folder):
    text = (
        "# Examples and their pictures\n\nEach example is one complete file, runs in under a minute on a "
        "CPU, downloads nothing, and drew the pictures below while this site was built.\n\n"
    )
    for example in scripts():
        title, _, rest = _describe(example)
        text += f"## {_number(example)}[{title}]({example.stem}.md)\n\n{rest}\n\n{_show(folder, example)}\n\n"
    names = "\n".join(f"{_number(example)}{_short(example)} <{example.stem}>" for example in scripts())
    return f"{text}\n```{{toctree}}\n:hidden:\n\n{names}\n```\n"


def _put(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        path.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for script in scripts():
        print(script.stem)
        draw(script, Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs/generated/gallery") / script.stem)
