"""Where hosts (fairseq, torch, numpy) differ or are broken: one small function a mend, idle where not needed.

The hosts are `main` (git main since December 2022 and its releases, such as ve-fairseq 0.12.3) and `0.12.2`
(the official release). A mend says which of them, and which torch or numpy, it is for.
"""

import functools

from diffusion_fairseq.compat.bad_batches import report_bad_batches
from diffusion_fairseq.compat.batches import (
    count_all_but_fillers,
    keep_last_batch,
    numpy2_buckets,
    stop_prefetch_at_exit,
)
from diffusion_fairseq.compat.bert import report_bad_bert
from diffusion_fairseq.compat.checkpoints import force_weights_only, report_bad_checkpoints, safe_globals
from diffusion_fairseq.compat.datasets import report_bad_data, report_bad_dictionaries, truncate_sources
from diffusion_fairseq.compat.help import show_all_options
from diffusion_fairseq.compat.lines import report_bad_lines
from diffusion_fairseq.compat.literals import literal_eval
from diffusion_fairseq.compat.options import report_bad_options
from diffusion_fairseq.compat.patience import keep_patience
from diffusion_fairseq.compat.processes import (
    broadcast_object,
    join_torchrun,
    replicate_on_cpu,
    restart_under_torchrun,
    spawn_without_gpus,
)
from diffusion_fairseq.compat.results import keep_results
from diffusion_fairseq.compat.saving import save_whole_checkpoints
from diffusion_fairseq.compat.search import diverse_beam_search
from diffusion_fairseq.compat.starts import report_bad_metric, report_bad_training
from diffusion_fairseq.compat.training import (
    absent_parameters,
    better_transformer,
    bf16_is_not_tpu,
    ema_of_other_shapes,
    ema_version,
    half_precision_resumes,
    one_log_handler,
    own_training_time,
    portable_encoder_layers,
)

MENDS = (
    force_weights_only,
    safe_globals,
    literal_eval,
    report_bad_checkpoints,
    report_bad_bert,
    report_bad_options,
    show_all_options,
    report_bad_lines,
    report_bad_metric,
    report_bad_data,
    report_bad_dictionaries,
    truncate_sources,
    report_bad_batches,
    save_whole_checkpoints,
    keep_results,
    broadcast_object,
    join_torchrun,
    restart_under_torchrun,
    spawn_without_gpus,
    report_bad_training,
    replicate_on_cpu,
    stop_prefetch_at_exit,
    keep_last_batch,
    count_all_but_fillers,
    numpy2_buckets,
    ema_version,
    ema_of_other_shapes,
    half_precision_resumes,
    bf16_is_not_tpu,
    own_training_time,
    keep_patience,
    one_log_handler,
    absent_parameters,
    better_transformer,
    portable_encoder_layers,
    diverse_beam_search,
)


@functools.cache
def apply() -> None:
    """Mend the host of this process; a second call does nothing."""
    for mend in MENDS:
        mend()
