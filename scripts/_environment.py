"""The environment that a script needs: imported before all that may be missing, it says so in one line."""

import logging
import sys

if sys.version_info < (3, 10):  # noqa: UP036  what pip refuses, python starts
    sys.exit("error: this is Python {}.{}, and 3.10 is the oldest that will do: activate the environment that "
             "scripts/setup.sh makes".format(*sys.version_info))
EXTRAS = {"starlette": "serve", "uvicorn": "serve"}  # modules of setup.py's extras, which setup.sh leaves out
_shown_before = sys.excepthook


def _hook(kind, error, trace) -> None:
    if issubclass(kind, ModuleNotFoundError):
        remedy = f"pip install '.[{EXTRAS[error.name]}]' beside setup.py" if error.name in EXTRAS else \
            "activate the environment that scripts/setup.sh makes, or install it with pip"
        sys.stderr.write(f"error: this Python ({sys.executable}) has no {error.name}: {remedy}\n")
    else:
        _shown_before(kind, error, trace)


sys.excepthook = _hook
logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)  # advises all to install tensorboardX
logging.getLogger("matplotlib").setLevel(logging.WARNING)  # fairseq has all loggers say what they debug
