"""Several processes: resuming them, and starting them on machines without GPUs."""

import importlib
import os
import socket

import torch
from fairseq.distributed import utils as distributed
from fairseq.models import distributed_fairseq_model
from torch import distributed as dist

from diffusion_fairseq.compat.patching import replace


def broadcast_object() -> None:
    """Send a loaded checkpoint from rank 0 to the other ranks when training is resumed.

    Both hosts with torch >= 2.6, and with any torch under force_weights_only: the host sends the objects
    through torch.load, which refuses omegaconf's classes. torch's own collective unpickles bytes that rank 0
    of this very run has made from a file it loaded safely.
    """
    stock = distributed._broadcast_object_slow

    def broadcast(obj, src_rank, group, dist_device):
        if distributed.use_xla():
            return stock(obj, src_rank, group, dist_device)
        holder = [obj]
        dist.broadcast_object_list(holder, src=src_rank, group=group, device=dist_device)
        return holder[0]

    replace(distributed, "_broadcast_object_slow", broadcast)


def join_torchrun() -> None:
    """Make the processes that torchrun started one training, with and without GPUs.

    Main takes a --distributed-world-size of 1 (its default with at most one GPU a node) for no torchrun at
    all, and trains once per process into the same directory; without GPUs it divides by their number. Both
    hosts need another backend than nccl there. https://github.com/facebookresearch/fairseq/issues/2879
    """
    infer = distributed.infer_init_method
    join = distributed._infer_torch_distributed_launch_init

    def infer_init_method(cfg, *args, **kwargs):
        world_size = int(os.environ.get("WORLD_SIZE", 1)) if dist.is_torchelastic_launched() else 1
        if world_size > 1 and cfg.distributed_init_method is None and not cfg.tpu:
            cfg.distributed_world_size = world_size
        return infer(cfg, *args, **kwargs)

    replace(distributed, "infer_init_method", infer_init_method)
    replace(distributed, "_infer_torch_distributed_launch_init",
            lambda cfg: join(cfg) if torch.cuda.device_count() else join_by_gloo(cfg))


def join_by_gloo(cfg) -> None:
    """Take from torchrun which process of how many this one is, and compute on the CPU."""
    cfg.distributed_init_method = "env://"
    cfg.distributed_world_size = int(os.environ["WORLD_SIZE"])
    cfg.distributed_rank = int(os.environ["RANK"])
    cfg.distributed_backend = "gloo"
    cfg.distributed_no_spawn = True
    cfg.device_id = 0


def restart_under_torchrun() -> None:
    """Let the processes that torchrun --max-restarts has started again find one another.

    torch >= 2.5 or so, any host: they meet in the store of the round before, where the addresses of its dead processes
    still are ("Gloo connectFullMesh failed ... Connection refused").
    """
    # torch.distributed has a function of this name, too.
    rendezvous = importlib.import_module("torch.distributed.rendezvous")
    restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    if restarts == "0" or not hasattr(rendezvous, "_create_c10d_store"):
        return
    stock = rendezvous._create_c10d_store
    rendezvous._create_c10d_store = lambda *args, **kwargs: dist.PrefixStore(restarts, stock(*args, **kwargs))


def spawn_without_gpus() -> None:
    """Start as many processes as --distributed-world-size says on a machine without GPUs, or with --cpu.

    Both hosts: they count the GPUs, and refuse. https://github.com/facebookresearch/fairseq/issues/2879
    With --cpu they start a process for each GPU that is there, which is the option's default, all of them on the first.
    """
    stock = distributed.call_main

    def call_main(cfg, main, **kwargs):
        options = cfg.distributed_training
        gpus = torch.cuda.device_count()
        if cfg.common.cpu and gpus:
            if options.distributed_world_size == gpus:
                options.distributed_world_size = 1
            if dist.is_torchelastic_launched() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
                join_by_gloo(options)
        started = "RANK" in os.environ or options.distributed_no_spawn or options.distributed_port > 0
        alone = options.distributed_world_size == 1 or cfg.common.tpu
        on_gpus = gpus and not cfg.common.cpu
        if on_gpus or alone or started or options.distributed_init_method is not None:
            return stock(cfg, main, **kwargs)
        with socket.socket() as free:
            free.bind(("localhost", 0))
            options.distributed_init_method = f"tcp://localhost:{free.getsockname()[1]}"
        options.distributed_backend = "gloo"
        options.distributed_rank = None
        arguments = (main, cfg, {**kwargs, "start_rank": 0})
        return torch.multiprocessing.spawn(distributed.distributed_main, arguments, options.distributed_world_size)

    replace(distributed, "call_main", call_main)


def replicate_on_cpu() -> None:
    """Let --ddp-backend pytorch_ddp replicate a model that lies on the CPU.

    Both hosts: they name a GPU always. https://github.com/facebookresearch/fairseq/issues/2879
    """
    stock = distributed_fairseq_model.DistributedDataParallel

    def replicate(module, device_ids=None, output_device=None, **kwargs):
        if all(parameter.device.type == "cpu" for parameter in module.parameters()):
            device_ids = output_device = None
        return stock(module, device_ids=device_ids, output_device=output_device, **kwargs)

    distributed_fairseq_model.DistributedDataParallel = replicate
