"""Packaging of diffusion_fairseq. fairseq, the host, is only an extra: five distributions own that name."""

import re
from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
INIT = ROOT / "diffusion_fairseq/__init__.py"
VERSION = re.search(r'^__version__ = "(.+)"$', INIT.read_text("utf-8"), re.MULTILINE)[1]
README = ROOT / "README.md"

HOST_MODERN = (
    've-fairseq==0.12.3; python_version >= "3.11" and python_version < "3.13"'
    ' and sys_platform == "linux" and platform_machine == "x86_64"'
)
# Its metadata resolves with pip < 24.1 only: scripts/setup.sh installs it with --no-deps.
HOST_OFFICIAL = 'fairseq==0.12.2; python_version < "3.11"'
COMMANDS = ("train", "generate", "interactive", "validate", "preprocess")

setup(
    name="diffusion-fairseq",
    version=VERSION,
    description="Diffusion language models for fairseq",
    long_description=README.read_text("utf-8") if README.exists() else "",
    long_description_content_type="text/markdown",
    python_requires=">=3.10",
    packages=find_packages(include=["diffusion_fairseq*"]),
    install_requires=[
        "numpy>=1.23",
        "torch>=2.4",
        "sentencepiece>=0.1.97",
        "sacremoses>=0.0.53",
        "rouge-score>=0.1.2",
        "sacrebleu>=2.3",
        "tqdm>=4.64",
    ],
    extras_require={
        "host": [HOST_MODERN, HOST_OFFICIAL],
        "plots": ["matplotlib>=3.8"],
        "browser": ["playwright"],  # for the tests of pages, which need Chromium, too
        "serve": ["starlette>=0.40", "uvicorn>=0.30"],  # for scripts/serve.py
        "metrics": ["accelerate", "bert-score", "gguf", "mauve-text", "transformers"],
        "docs": ["pdoc"],  # the API reference, see docs/README.md
        "dev": ["pytest", "pytest-xdist", "hypothesis", "ruff"],
    },
    entry_points={
        "console_scripts": [
            *(f"diffusion-fairseq-{command} = diffusion_fairseq.cli:{command}" for command in COMMANDS),
            "diffusion-fairseq-dir = diffusion_fairseq.cli:directory",
        ]
    },
    zip_safe=False,
)
