"""--patience: early stopping counts on where training was interrupted, and has stopped where it had."""

import logging

from fairseq.trainer import Trainer

from diffusion_fairseq.compat.patching import replace_in_command

logger = logging.getLogger(__name__)
COUNTED = "early_stopping"  # in a checkpoint's extra_state


def keep_patience() -> None:
    """Save with a checkpoint what --patience has counted, go on with it, and train no further where it is used up.

    Both hosts: the best value and the validations since then are attributes of a function, which each process begins
    anew; after an early stop the same command trains on. As the host's own best value, that of checkpoint_best.pt, they
    are not taken over by --reset-optimizer, --reset-meters and --finetune-from-model.
    """
    load, save, counted = Trainer.load_checkpoint, Trainer.save_checkpoint, {}

    def load_checkpoint(self, filename, reset_optimizer=False, reset_lr_scheduler=False, optimizer_overrides=None,
                        reset_meters=False):
        found = load(self, filename, reset_optimizer, reset_lr_scheduler, optimizer_overrides, reset_meters)
        counted.clear()
        # Without --patience nothing is counted, and what was before says nothing of later validations.
        if found is not None and self.cfg.checkpoint.patience > 0 and not (reset_optimizer or reset_meters):
            counted.update(found.get(COUNTED, {}))
        return found

    def save_checkpoint(self, filename, extra_state):
        if counted:
            # A metric may be a number of numpy or torch, and a checkpoint is data.
            plain = {"best": float(counted["best"]), "num_runs": int(counted["num_runs"])}
            extra_state = {**extra_state, COUNTED: plain}
        return save(self, filename, extra_state)

    def counting(stock):
        def should_stop_early(cfg, valid_loss):
            # The host's function finds its attributes under its name, which is this one's.
            held = vars(should_stop_early)
            held.clear()
            held.update(counted)
            stops = stock(cfg, valid_loss)
            counted.update(held)
            return stops

        return should_stop_early

    def stopping(stock):
        def train(cfg, *args):
            if 0 < cfg.checkpoint.patience <= counted.get("num_runs", 0):
                logger.info(f"no update: this training had stopped early, after {counted['num_runs']} validations that "
                            "were no better; a larger --patience goes on with it")
                return [None], True
            return stock(cfg, *args)

        return train

    Trainer.load_checkpoint, Trainer.save_checkpoint = load_checkpoint, save_checkpoint
    replace_in_command("train", "should_stop_early", counting)
    replace_in_command("train", "train", stopping)
