"""The fairseq that this package is a plugin of: there must be one, and it is the user's choice which."""

import logging

from diffusion_fairseq.errors import UserError


class HostError(ImportError, UserError):
    """No fairseq can be imported; the message says what to install."""


def require() -> None:
    """Import fairseq; raise HostError where there is none, or one that this Python cannot import."""
    # Every process would begin with its advice to install a package that only speech needs.
    logging.getLogger("fairseq.tasks.text_to_speech").setLevel(logging.WARNING)
    remedy = "pip install 'diffusion-fairseq[host]', or in a clone of the repository: bash scripts/setup.sh"
    try:
        import fairseq  # noqa: F401
    except ModuleNotFoundError as error:
        if error.name != "fairseq":
            raise
        raise HostError(f"no fairseq is installed: {remedy}") from None
    except ValueError as error:
        # What dataclasses of Python >= 3.11 say to the official release.
        if "mutable default" not in str(error):
            raise
        raise HostError(f"the installed fairseq is for Python <= 3.10: {remedy}") from None
