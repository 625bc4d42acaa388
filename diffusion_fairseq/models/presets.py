"""Architectures as data: --arch name -> options that differ from the model's defaults."""

from typing import Any, Dict

GENIE: Dict[str, Dict[str, Any]] = {
    # Seed sizes: GENIE, section 4.1; 6 + 6 layers of 768, latent 128, T = 2000, sqrt.
    "genie_base": {},
    # 2.6 M parameters with 4,000 types: learns in minutes on two CPU cores.
    "genie_small": {
        "model_dim": 192, "ffn_dim": 384, "attention_heads": 4, "encoder_layers": 2, "denoiser_layers": 3,
        "latent_dim": 32, "encoder_normalize_before": True, "self_conditioning": True,
        "length_model": "predicted",
    },
    "genie_tiny": {
        "model_dim": 64, "ffn_dim": 128, "attention_heads": 2, "encoder_layers": 2, "denoiser_layers": 2,
        "latent_dim": 32, "time_dim": 32, "encoder_normalize_before": True, "self_conditioning": True,
        "length_model": "predicted",
    },
}

DIFFUSION_LM: Dict[str, Dict[str, Any]] = {
    # Stabilizing Diffusion LMs, section 5.2, and Diffusion-LM's ROCStories: BERT-base's shape, latent 128.
    "diffusion_lm_base": {},
    # Diffusion-LM's E2E: 821 words, latent 16.
    "diffusion_lm_e2e": {"latent_dim": 16},
    # 5.7 M parameters with 10,000 types.
    "diffusion_lm_small": {
        "model_dim": 256, "ffn_dim": 1024, "attention_heads": 4, "encoder_layers": 4, "latent_dim": 64,
        "encoder_normalize_before": True, "self_conditioning": True,
    },
    "diffusion_lm_tiny": {
        "model_dim": 64, "ffn_dim": 128, "attention_heads": 2, "encoder_layers": 2, "latent_dim": 32, "time_dim": 32,
        "encoder_normalize_before": True, "self_conditioning": True,
    },
}

LATENT_CLASSIFIER: Dict[str, Dict[str, Any]] = {
    "latent_classifier_small": {
        "model_dim": 192, "ffn_dim": 768, "attention_heads": 4, "encoder_layers": 3, "encoder_normalize_before": True,
    },
    "latent_classifier_tiny": {
        "model_dim": 64, "ffn_dim": 128, "attention_heads": 2, "encoder_layers": 2, "time_dim": 32,
        "encoder_normalize_before": True,
    },
}

DIFFUSEQ: Dict[str, Dict[str, Any]] = {
    # DiffuSeq and "Large-Scale Diffusion Models for Text Generation": BERT-base's shape, latent 128, T = 2000, sqrt.
    "diffuseq_base": {},
    "diffuseq_small": {
        "model_dim": 192, "ffn_dim": 768, "attention_heads": 4, "encoder_layers": 5, "latent_dim": 32,
        "encoder_normalize_before": True, "self_conditioning": True, "mark_source": True, "length_model": "predicted",
    },
    "diffuseq_tiny": {
        "model_dim": 64, "ffn_dim": 128, "attention_heads": 2, "encoder_layers": 2, "latent_dim": 32, "time_dim": 32,
        "encoder_normalize_before": True, "self_conditioning": True, "mark_source": True, "length_model": "predicted",
    },
}

DDLM: Dict[str, Dict[str, Any]] = {
    # DDLM, section 3.2: 147 M parameters with 32,000 types.
    "ddlm_base": {"self_conditioning": True},
    # 7.3 M parameters with 10,000 types.
    "ddlm_small": {
        "model_dim": 256, "ffn_dim": 1024, "attention_heads": 4, "encoder_layers": 4, "latent_dim": 64, "t_min": 0.5,
        "self_conditioning": True,
    },
    "ddlm_tiny": {
        "model_dim": 64, "ffn_dim": 128, "attention_heads": 2, "encoder_layers": 2, "latent_dim": 32, "time_dim": 32,
        "t_min": 0.5, "self_conditioning": True,
    },
}

# With the weights of a DDLM of the same size.
DDLM_CLASSIFIER: Dict[str, Dict[str, Any]] = {
    name.replace("ddlm", "ddlm_classifier"): sizes for name, sizes in DDLM.items()
}
