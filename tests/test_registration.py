from argparse import Namespace

from fairseq.models import ARCH_CONFIG_REGISTRY
from omegaconf import OmegaConf

from diffusion_fairseq.models.presets import GENIE


def test_a_preset_fills_in_what_the_command_line_left_open():
    given = Namespace(model_dim=96)
    ARCH_CONFIG_REGISTRY["genie_tiny"](given)
    assert vars(given) == {**GENIE["genie_tiny"], "model_dim": 96}


def test_options_that_are_younger_than_a_checkpoint_get_their_defaults():
    cfg = OmegaConf.create({"_name": "genie_tiny", "model_dim": 96, "noise_schedule": "cosine"})
    ARCH_CONFIG_REGISTRY["genie_tiny"](cfg)
    assert (cfg.model_dim, cfg.noise_schedule, cfg._name) == (96, "cosine", "genie_tiny")
    assert cfg.noise_points is None and cfg.adaptive_schedule_updates == 0 and cfg.ffn_dim == 128
