"""Model classes and their presets, registered with fairseq."""

import dataclasses
from typing import Any, Callable, Dict, Type

from fairseq.models import register_model, register_model_architecture
from omegaconf import OmegaConf


def register(name: str, config: type, presets: Dict[str, Dict[str, Any]]) -> Callable[[Type], Type]:
    """A class decorator: --arch `name`, and each preset's name with the options that it fills in."""

    def registered(model: Type) -> Type:
        register_model(name, dataclass=config)(model)
        for arch, preset in presets.items():
            _register_preset(name, arch, preset, config)
        return model

    return registered


def _register_preset(name: str, arch: str, preset: Dict[str, Any], config: type) -> None:
    @register_model_architecture(name, arch)
    def apply_preset(args) -> None:
        """Fill in what the command line left open, or what a checkpoint is too old to know."""
        options = dict(preset)
        if OmegaConf.is_config(args):
            # The host sets the defaults of a command line alone.
            options = {**{field.name: field.default for field in dataclasses.fields(config)}, **preset}
        for option, value in options.items():
            if not hasattr(args, option):
                setattr(args, option, value)
