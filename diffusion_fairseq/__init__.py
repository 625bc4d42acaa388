"""Diffusion language models for fairseq; importing this package registers them, as --user-dir does."""

from diffusion_fairseq import errors, host

__version__ = "0.1.0"

errors.show_user_errors_in_one_line()
host.require()

from diffusion_fairseq import compat  # noqa: E402

compat.apply()

from diffusion_fairseq import criterions, models, scoring, tasks  # noqa: E402, F401
