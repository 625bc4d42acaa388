"""Architectures as data: --arch name -> options that differ from the model's defaults."""

from typing import Any, Dict

GENIE: Dict[str, Dict[str, Any]] = {
    # Seed sizes: GENIE, section 4.1; 6 + 6 layers of 768, latent 128, T = 2000, sqrt.
    "genie_base": {},
    "genie_small": {
        "model_dim": 256, "ffn_dim": 512, "attention_heads": 4, "encoder_layers": 3, "denoiser_layers": 4,
        "latent_dim": 64, "encoder_normalize_before": True, "self_conditioning": True,
        "length_model": "predicted",
    },
    "genie_tiny": {
        "model_dim": 64, "ffn_dim": 128, "attention_heads": 2, "encoder_layers": 2, "denoiser_layers": 2,
        "latent_dim": 32, "time_dim": 32, "encoder_normalize_before": True, "self_conditioning": True,
        "length_model": "predicted",
    },
}
